//! `stat`

use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use racker_fs::inspect::Volume;
use racker_fs::path::Place;
use serde_json::{Value, json};

use super::{Look, On};
use crate::clean::clean;
use crate::fault::{About, Outcome};
use crate::output::{self, exact, kind, line, mode};
use crate::target::Target;

/// Show everything about files of an image, extended attributes included
#[derive(Args, Debug)]
pub(crate) struct Stat {
    /// Files inside the image
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Follow a symbolic link at the end of a path
    #[arg(short = 'L', long)]
    dereference: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Look for Stat {
    fn look(&self, on: On<'_>) -> Outcome<()> {
        let On { target, which } = on;
        let mut all = Vec::new();
        for path in &self.paths {
            let (place, _) = target.place(which, path, self.dereference)?;
            let view = describe(target, &place).about(&target.path)?;
            if self.json {
                all.push(view);
            } else {
                print(&view)?;
            }
        }
        if self.json {
            output::json(&all)?;
        }
        Ok(())
    }
}

/// One view for both outputs.
fn describe(target: &Target, place: &Place) -> racker_formats::Result<Value> {
    let stat = place.fs.stat(place.node)?;
    let mut xattrs = serde_json::Map::new();
    place.fs.xattrs(place.node, &mut |(name, value)| {
        let shown = match std::str::from_utf8(value) {
            Ok(text) if !text.chars().any(|c| c.is_control() && c != '\0') => {
                text.trim_end_matches('\0').to_string()
            }
            _ => value.iter().fold("0x".to_string(), |s, b| s + &format!("{b:02x}")),
        };
        xattrs.insert(String::from_utf8_lossy(name).into_owned(), shown.into());
        Ok(ControlFlow::Continue(()))
    })?;
    let target_of = match stat.kind {
        racker_fs::filesystem::NodeKind::Link => {
            Some(String::from_utf8_lossy(&place.fs.read_link(place.node)?).into_owned())
        }
        _ => None,
    };
    let volume = target.inspection.volumes.get(place.volume).map_or_else(|| "0".into(), Volume::name);
    Ok(json!({
        "path": place.display(),
        "volume": volume,
        "filesystem": place.fs.facts()?.kind,
        "inode": place.node.0,
        "type": kind(stat.kind),
        "mode": format!("{:04o}", stat.mode),
        "permissions": mode(&stat),
        "uid": stat.uid,
        "gid": stat.gid,
        "links": stat.links,
        "size": stat.size,
        "allocated": stat.allocated,
        "target": target_of,
        "device": (stat.rdev != (0, 0)).then(|| format!("{}:{}", stat.rdev.0, stat.rdev.1)),
        "atime": exact(stat.atime),
        "mtime": exact(stat.mtime),
        "ctime": exact(stat.ctime),
        "crtime": stat.crtime.map(exact),
        "flags": stat.flags.iter_names().map(|(n, _)| n.to_lowercase()).collect::<Vec<_>>(),
        "project": stat.project,
        "xattrs": xattrs,
    }))
}

fn print(view: &Value) -> Outcome<()> {
    let Some(fields) = view.as_object() else { return Ok(()) };
    for (name, value) in fields {
        match value {
            Value::Null => {}
            Value::Array(a) if a.is_empty() => {}
            Value::Array(a) => {
                let words: Vec<_> = a.iter().filter_map(Value::as_str).collect();
                line(&format!("{name:>12}: {}", words.join(" ")))?;
            }
            Value::Object(map) => {
                for (key, value) in map {
                    line(&format!(
                        "{:>12}: {}={}",
                        "xattr",
                        clean(key),
                        clean(value.as_str().unwrap_or(""))
                    ))?;
                }
            }
            Value::String(s) => line(&format!("{name:>12}: {}", clean(s)))?,
            other => line(&format!("{name:>12}: {other}"))?,
        }
    }
    Ok(())
}
