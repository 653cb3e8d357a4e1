//! A trial's table.

use lacuna_scenarios::wire::{Outcome, Step};

/// The word for what came of a step.
const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Good => "good",
        Outcome::Weaker => "weaker",
        Outcome::Refused => "refused",
        Outcome::Bad => "BAD",
    }
}

/// One row.
pub(super) fn row(step: &Step) -> String {
    format!("{:<22} {:<8} {}", step.name, word(step.outcome), step.detail)
}

/// All of it, with what the words mean below. A trial that did not come to its end may have no bad step.
pub(super) fn rendered(steps: &[Step], ended: bool) -> String {
    let rows: String = steps.iter().map(|step| row(step) + "\n").collect();
    let verdict = match worst(steps) {
        Outcome::Good | Outcome::Weaker | Outcome::Refused if !ended => "the trial did not come to its end",
        Outcome::Good => "every step held",
        Outcome::Weaker => {
            "every step held; `weaker` means that less could be shown than with the lab's agent or a counter"
        }
        Outcome::Refused => "Lacuna refused this guest, and left it alone",
        Outcome::Bad => "do not use Lacuna with this guest",
    };
    format!("{rows}\n{verdict}")
}

fn worst(steps: &[Step]) -> Outcome {
    let has = |outcome| steps.iter().any(|step| step.outcome == outcome);
    [Outcome::Bad, Outcome::Refused, Outcome::Weaker]
        .into_iter()
        .find(|outcome| has(*outcome))
        .unwrap_or(Outcome::Good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(outcome: Outcome) -> Step {
        Step {
            name: "boots".to_owned(),
            outcome,
            detail: "Linux".to_owned(),
        }
    }

    #[test]
    fn the_worst_step_makes_the_verdict() {
        use Outcome::{Bad, Good, Refused, Weaker};
        for (outcomes, verdict) in [
            (vec![Good, Good], "every step held"),
            (vec![Good, Weaker, Good], "less could be shown"),
            (vec![Weaker, Refused], "refused this guest"),
            (vec![Refused, Bad], "do not use"),
        ] {
            let steps: Vec<Step> = outcomes.into_iter().map(step).collect();
            assert!(rendered(&steps, true).contains(verdict), "{verdict}");
            assert_eq!(rendered(&steps, false).contains(verdict), verdict == "do not use");
        }
    }
}
