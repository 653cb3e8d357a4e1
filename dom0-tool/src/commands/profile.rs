//! `lacuna profile build` and `lacuna profile show`.

use serde_json::Value;

use super::Out;
use super::cli::{ProfileBuild, ProfileShow};
use super::render::built_json;
use super::render::profile::{layout_json, show_layout, show_profile};
use super::terminal::Terminal;
use crate::failure::{Class, Failure};
use crate::ops::profile::{self, LayoutOrProfile};

/// Runs `lacuna profile build`.
pub(super) fn build(arguments: &ProfileBuild, out: Out) -> Result<Value, Failure> {
    let Some(guest) = arguments.chosen() else {
        return build_layout(arguments, out);
    };
    let file = arguments.out.as_deref();
    let (kernel, built) = profile::build(&guest, &(&arguments.layout).into(), file, &mut Terminal::new(out))?;
    if let Some(file) = file {
        out.line(format!("written     {}", file.display()));
    }
    Ok(built_json(&kernel, &built))
}

fn build_layout(arguments: &ProfileBuild, out: Out) -> Result<Value, Failure> {
    let Some(headers) = &arguments.layout.headers else {
        return Err(Failure::new(
            Class::NotFound,
            "neither a guest nor headers were named",
            "name a domain for its profile, or --headers DIR for a layout",
        ));
    };
    let layout = profile::build_layout(
        headers,
        &(&arguments.layout).into(),
        arguments.release.as_deref(),
        arguments.out.as_deref(),
        &mut Terminal::new(out),
    )?;
    show_layout(&layout, out);
    Ok(layout_json(&layout))
}

/// Runs `lacuna profile show`.
pub(super) fn show(arguments: &ProfileShow, out: Out) -> Result<Value, Failure> {
    Ok(match profile::show(&arguments.what)? {
        LayoutOrProfile::Layout(layout) => {
            show_layout(&layout, out);
            layout_json(&layout)
        }
        LayoutOrProfile::Profile(profile, bytes) => show_profile(&profile, bytes, out),
    })
}
