//! Tests of what the file may say.

use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("lacunad.toml"))
}

fn refusal(text: &str) -> String {
    match parse(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_empty_file_is_the_default() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.treatment(Some("anyone")).mode, Mode::Free);
    assert_eq!(config.cpu_percent, 5);
}

#[test]
fn the_file_that_is_shipped_says_what_the_defaults_are() {
    let shipped = parse(include_str!("../../../lacunad.toml")).unwrap();
    assert_eq!(shipped, Config::default());
}

#[test]
fn a_domain_takes_from_the_defaults_what_it_does_not_say() {
    let config = parse(
        "[defaults]\nmode = \"observe\"\ninterval_seconds = 30.0\n[domain.db]\nmode = \"free\"\n[domain.\"old one\"]\ninterval_seconds = 0.5\n",
    )
    .unwrap();
    let seconds = Duration::from_secs_f64;
    let treat = |mode, interval| Treatment {
        mode,
        interval,
        extent: Extent::Settled,
        group: String::new(),
    };
    assert_eq!(*config.treatment(Some("db")), treat(Mode::Free, seconds(30.0)));
    assert_eq!(
        *config.treatment(Some("old one")),
        treat(Mode::Observe, seconds(0.5))
    );
    assert_eq!(
        *config.treatment(Some("web")),
        treat(Mode::Observe, seconds(30.0))
    );
    assert_eq!(*config.treatment(None), treat(Mode::Observe, seconds(30.0)));
}

#[test]
fn a_trust_group_is_a_guests_own_or_that_of_the_defaults() {
    let config = parse(
        "[defaults]\nmode = \"free+content\"\ntrust_group = \"all\"\n[domain.db]\ntrust_group = \"\"\n[domain.ci]\ntrust_group = \"build\"\n[domain.old]\nmode = \"free\"\n",
    )
    .unwrap();
    for (name, mode, group) in [
        ("db", Mode::FreeContent, ""),
        ("ci", Mode::FreeContent, "build"),
        ("old", Mode::Free, "all"),
        ("web", Mode::FreeContent, "all"),
    ] {
        let treatment = config.treatment(Some(name));
        assert_eq!(
            (treatment.mode, treatment.group.as_str()),
            (mode, group),
            "{name}"
        );
    }
    let text = config.describe();
    assert!(text.contains("guest ci: free+content, settled, a round every 60 s, equal pages shared in trust group \"build\"\n"), "{text}");
    assert!(
        text.contains(
            "guest db: free+content, settled, a round every 60 s, equal pages shared with no other guest\n"
        ),
        "{text}"
    );
}

#[test]
fn what_is_wrong_is_said_in_one_line_with_its_text_and_allowed_values() {
    for (text, expected) in [
        (
            "\n[daemon]\ncpu_percent = 500\n",
            &["lacunad.toml:3", "cpu_percent = 500", "out of range", "1 to 100"][..],
        ),
        (
            "[defaults]\nmode = \"fre\"",
            &[
                "lacunad.toml:2",
                "unknown variant `fre`",
                "`off`, `observe`, `free`, `free+content`",
            ],
        ),
        (
            "[domain.web]\nmode = \"free\"\ntrust_group = \"all\"\n",
            &[
                "lacunad.toml:3",
                "the mode of guest \"web\" is \"free\"",
                "free+content",
            ],
        ),
        (
            "[defaults]\ntrust_group = \"a b\"\n",
            &["lacunad.toml:2", "\"a b\" is no name", "at most 63"],
        ),
        (
            "[domain.web]\nmod = \"free\"",
            &[
                "lacunad.toml:2",
                "unknown field `mod`",
                "`mode`",
                "`interval_seconds`",
            ],
        ),
        (
            "[deamon]\n",
            &["lacunad.toml:1", "unknown field `deamon`", "`daemon`"],
        ),
        (
            "[daemon]\npoll_seconds = \"often\"\n",
            &["lacunad.toml:2", "poll_seconds = \"often\"", "u64"],
        ),
        ("[daemon\n", &["lacunad.toml:1", "[daemon"]),
        (
            "[history]\nmib = 2000\n",
            &["lacunad.toml:2", "2000 is out of range", "0 to 1024"],
        ),
        (
            "[metrics]\nlisten = \"tcp:0.0.0.0:9\"\n",
            &["lacunad.toml:2", "0.0.0.0", "loopback", "tcp:127.0.0.1:PORT"],
        ),
        (
            "[metrics]\nlisten = \"/tmp/x\"\n",
            &["lacunad.toml:2", "unix:/path"],
        ),
        (
            "[defaults]\ninterval_seconds = 0.0\n",
            &["lacunad.toml:2", "0.1 to 86400"],
        ),
    ] {
        let refused = refusal(text);
        for part in expected {
            assert!(refused.contains(part), "{part:?} is not in:\n{refused}");
        }
    }
}

#[test]
fn places_to_listen_are_read() {
    for (text, expected) in [
        ("off", Listen::Off),
        ("unix:/run/m", Listen::Unix("/run/m".into())),
        ("tcp:127.0.0.1:9", Listen::Tcp(([127, 0, 0, 1], 9).into())),
    ] {
        assert_eq!(
            parse(&format!("[metrics]\nlisten = \"{text}\"")).unwrap().listen,
            expected
        );
    }
}

#[test]
fn folders_of_symbols_are_held_against_the_syntax() {
    let folders = "srv*/srv/symbols;/srv/more";
    let config = parse(&format!("[daemon]\nsymbols = \"{folders}\"\n")).unwrap();
    assert_eq!(config.symbols.as_deref(), Some(folders));
    assert_eq!(parse("[daemon]\nsymbols = \"\"\n").unwrap().symbols, None);
    let text = refusal("[daemon]\nsymbols = 'c:\\symbols'\n");
    assert!(
        text.contains("lacunad.toml:2") && text.contains("folders and srv*FOLDER"),
        "{text}"
    );
}
