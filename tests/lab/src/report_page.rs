//! The page of `lacuna report`, as a browser shows it: Chromium without a window, in a wide one, a narrow one,
//! and one of a reader who wants dark pages.
//!
//! The page itself has no script and allows none. What is looked at is a copy that allows the one below, which
//! measures and leaves what it found in the page.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::context::{Context, Staged};
use crate::error::{Error, IoContext, Result};
use crate::process::{install_missing, output, start};
use crate::progress::Progress;

/// The test whose page is looked at, and where it leaves it.
const TEST: &str = "a_day_of_the_daemon_becomes_a_page";
const PAGE: &str = "target/tmp/report/day.html";

/// What the page allows, and what the copy allows.
const POLICY: (&str, &str) = (
    "content=\"default-src 'none';",
    "content=\"default-src 'none'; script-src 'unsafe-inline';",
);

/// Measures the page, and leaves the result at its end.
const SCRIPT: &str = r"<script>
const all = [...document.querySelectorAll('svg')];
const names = list => list.map(node => node.textContent.slice(0, 40));
const inside = (text, svg) => {
  const box = text.getBoundingClientRect(), frame = svg.getBoundingClientRect();
  return box.left >= frame.left - 0.5 && box.right <= frame.right + 0.5 &&
         box.top >= frame.top - 0.5 && box.bottom <= frame.bottom + 0.5;
};
const texts = all.flatMap(svg => [...svg.querySelectorAll('text')].map(text => [text, svg]));
const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top || b.bottom <= a.top;
const boxes = texts.map(([text, svg]) => [svg, text, text.getBoundingClientRect()]);
const met = boxes.filter(([svg, text, box], at) => boxes.slice(at + 1).some(
  ([other, , its]) => other === svg && !apart(box, its)));
const found = {
  pictures: all.filter(svg => svg.getBoundingClientRect().height > 20).length,
  of_pictures: all.length,
  cut: names(texts.filter(([text, svg]) => !inside(text, svg)).map(([text]) => text)),
  overlapping: names(met.map(([, text]) => text)),
  smallest_text: Math.min(...boxes.map(([, , box]) => box.height)),
  too_wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  loaded: performance.getEntriesByType('resource').map(entry => entry.name),
  paper: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
};
const result = document.createElement('pre');
result.id = 'measured';
result.textContent = JSON.stringify(found);
document.body.append(result);
</script>";

/// What the script found.
#[derive(Clone, Debug, Deserialize)]
struct Measured {
    /// Pictures that have a height, of how many.
    pictures: u64,
    of_pictures: u64,
    /// Words of pictures that are not wholly within them, and such that lie upon others.
    cut: Vec<String>,
    overlapping: Vec<String>,
    /// Height of the smallest words of a picture, in pixels.
    smallest_text: f64,
    /// Pixels by which the page is wider than the window.
    too_wide: f64,
    /// What was asked for from elsewhere.
    loaded: Vec<String>,
    /// Colours, as `rgb(…)`.
    paper: String,
    ink: String,
}

/// A window.
#[derive(Clone, Copy, Debug)]
struct Window {
    name: &'static str,
    width: u32,
    dark: bool,
}

const WINDOWS: [Window; 3] = [
    Window {
        name: "wide",
        width: 1280,
        dark: false,
    },
    Window {
        name: "narrow",
        width: 500,
        dark: false,
    },
    Window {
        name: "dark",
        width: 1280,
        dark: true,
    },
];

/// The smallest words that can be read, in pixels of height.
const READABLE: f64 = 10.0;

/// Makes the page, and looks at it in each window. Chromium is installed when it is missing.
pub(crate) fn run(context: &Context) -> Result<()> {
    let progress = Progress::begin("the browser");
    install_missing(
        &[("chromium", "chromium")],
        &context.step_log("report-page"),
        &progress,
    )?;
    progress.done();
    let mut cargo = Command::new("cargo");
    cargo.current_dir(&context.repository).args([
        "test",
        "--locked",
        "--package",
        "lacuna",
        "--test",
        "history",
        TEST,
    ]);
    if !start(&mut cargo)?.wait().on("wait for", "cargo test")?.success() {
        return Err(Error::Failed { failed: 1, total: 1 });
    }
    let folder = context.repository.join("target/lab-logs/report-page");
    fs::create_dir_all(&folder).on("create", &folder)?;
    let copy = measuring_copy(&context.repository.join(PAGE), &folder)?;
    let mut offences = Vec::new();
    for window in WINDOWS {
        let measured = measure(context, &copy, &folder, window)?;
        println!(
            "lab: {}: {} pictures, smallest words {:.1} pixels high",
            window.name, measured.pictures, measured.smallest_text
        );
        offences.extend(judge(window, &measured));
    }
    if offences.is_empty() {
        return Ok(());
    }
    println!("{}", offences.join("\n"));
    Err(Error::Unexpected {
        what: format!("{PAGE} in Chromium"),
        expected: "nothing to object to".to_owned(),
        seen: format!(
            "{} objections; its pictures are in {}",
            offences.len(),
            folder.display()
        ),
    })
}

/// Writes the copy of the page that has the script.
fn measuring_copy(page: &Path, folder: &Path) -> Result<PathBuf> {
    let html = fs::read_to_string(page).on("read", page)?;
    if !html.contains(POLICY.0) || !html.contains("</body>") {
        return Err(Error::Unexpected {
            what: page.display().to_string(),
            expected: format!("a body, and a policy with {}", POLICY.0),
            seen: "no such page".to_owned(),
        });
    }
    let html = html
        .replace(POLICY.0, POLICY.1)
        .replace("</body>", &format!("{SCRIPT}</body>"));
    let copy = folder.join("day.html");
    fs::write(&copy, html).on("write", &copy)?;
    Ok(copy)
}

/// Shows the copy in a window, and reads what the script has left. Its picture stays in `folder`.
fn measure(context: &Context, copy: &Path, folder: &Path, window: Window) -> Result<Measured> {
    // Not committed, so it goes with this function.
    let profile = Staged::directory(folder.join("profile"))?;
    let browser = |action: &str| {
        let mut command = Command::new("chromium");
        command.args([
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]);
        if window.dark {
            command.arg("--blink-settings=preferredColorScheme=0");
        }
        command
            .arg(format!("--user-data-dir={}", profile.path.display()))
            .arg(format!("--window-size={},2400", window.width))
            .arg(action)
            .arg(format!("file://{}", copy.display()));
        command
    };
    let log = context.step_log("report-page");
    let shot = folder.join(format!("{}.png", window.name));
    output(browser(&format!("--screenshot={}", shot.display())), &log)?;
    let shown = output(browser("--dump-dom"), &log)?;
    read(&shown).ok_or_else(|| Error::Unexpected {
        what: "the page that Chromium shows".to_owned(),
        expected: "what the script measured".to_owned(),
        seen: shown.chars().take(400).collect(),
    })
}

/// Finds the script's result in the page.
fn read(shown: &str) -> Option<Measured> {
    let (_, rest) = shown.split_once("<pre id=\"measured\">")?;
    let (text, _) = rest.split_once("</pre>")?;
    let text = text
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    serde_json::from_str(&text).ok()
}

/// What there is to object to.
fn judge(window: Window, measured: &Measured) -> Vec<String> {
    let mut offences = Vec::new();
    let mut object = |bad: bool, what: String| {
        if bad {
            offences.push(format!("{}: {what}", window.name));
        }
    };
    let (drawn, all) = (measured.pictures, measured.of_pictures);
    object(
        drawn == 0 || drawn != all,
        format!("{drawn} of {all} pictures are drawn"),
    );
    object(
        !measured.cut.is_empty(),
        format!("words are cut: {:?}", measured.cut),
    );
    let overlapping = &measured.overlapping;
    object(
        !overlapping.is_empty(),
        format!("words upon others: {overlapping:?}"),
    );
    let height = measured.smallest_text;
    // JSON has no infinity: without words it would not be read.
    object(
        height < READABLE,
        format!("words of {height:.1} pixels of height, {READABLE} wanted"),
    );
    let wide = measured.too_wide;
    object(wide > 0.0, format!("{wide} pixels wider than the window"));
    let loaded = &measured.loaded;
    object(!loaded.is_empty(), format!("asks for {loaded:?}"));
    let (paper, ink) = (brightness(&measured.paper), brightness(&measured.ink));
    let as_wanted = paper
        .zip(ink)
        .is_some_and(|(paper, ink)| (paper < ink) == window.dark);
    object(
        !as_wanted,
        format!("{} on {}, dark: {}", measured.ink, measured.paper, window.dark),
    );
    offences
}

/// The sum of a colour's parts.
fn brightness(colour: &str) -> Option<u32> {
    let parts = colour.strip_prefix("rgb(")?.strip_suffix(')')?;
    parts.split(',').map(|part| part.trim().parse::<u32>().ok()).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn good() -> Measured {
        read(
            "<body>…<pre id=\"measured\">{\"pictures\":6,\"of_pictures\":6,\"cut\":[],\"overlapping\":[],\
             \"smallest_text\":12.5,\"too_wide\":0,\"loaded\":[],\"paper\":\"rgb(255, 255, 255)\",\
             \"ink\":\"rgb(26, 26, 26)\"}</pre>",
        )
        .unwrap()
    }

    #[test]
    fn a_page_that_is_as_it_should_be_passes() {
        assert_eq!(judge(WINDOWS[0], &good()), Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_objected_to() {
        type Spoil = fn(&mut Measured);
        let faults: [(&str, Spoil); 8] = [
            ("5 of 6 pictures", |page| page.pictures = 5),
            ("0 of 0 pictures", |page| {
                (page.pictures, page.of_pictures) = (0, 0);
            }),
            ("cut", |page| page.cut.push("09:00".to_owned())),
            ("upon others", |page| page.overlapping.push("09:00".to_owned())),
            ("6.5 pixels of height", |page| page.smallest_text = 6.5),
            ("wider", |page| page.too_wide = 12.0),
            ("asks for", |page| page.loaded.push("x".to_owned())),
            ("rgb(0, 0, 0)", |page| page.paper = "rgb(0, 0, 0)".to_owned()),
        ];
        for (part, spoil) in faults {
            let mut page = good();
            spoil(&mut page);
            let objections = judge(WINDOWS[0], &page);
            assert_eq!(objections.len(), 1, "{part}: {objections:?}");
            assert!(objections[0].contains(part), "{part}: {objections:?}");
        }
        assert_eq!(judge(WINDOWS[2], &good()).len(), 1, "light where dark was wanted");
    }

    #[test]
    fn a_page_without_the_result_is_none() {
        assert!(read("<body></body>").is_none());
        assert!(read("<pre id=\"measured\">nonsense</pre>").is_none());
    }
}
