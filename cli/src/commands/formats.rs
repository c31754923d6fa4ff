//! `racker formats`

use clap::Args;
use racker_formats::drivers::FORMATS;
use racker_fs::drivers::DRIVERS;
use serde_json::json;

use crate::exit::Exit;
use crate::fault::Outcome;
use crate::output::{self, line};

/// The image formats and filesystems that racker knows
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker formats")]
pub(crate) struct Formats {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Formats {
    pub(super) fn run(self) -> Outcome<Exit> {
        if self.json {
            let formats: Vec<_> = FORMATS
                .iter()
                .map(|f| {
                    let options: Vec<_> =
                        f.options().iter().map(|o| json!({ "name": o.name, "help": o.help })).collect();
                    json!({ "name": f.name(), "suffixes": f.suffixes(), "options": options })
                })
                .collect();
            let filesystems: Vec<_> = DRIVERS.iter().map(|d| d.name()).collect();
            output::json(&json!({ "formats": formats, "filesystems": filesystems }))?;
            return Ok(Exit::Done);
        }
        line("image formats:")?;
        for format in FORMATS {
            line(&format!("  {:8} .{}", format.name(), format.suffixes().join(" .")))?;
            for opt in format.options() {
                line(&format!("      -o {:20} {}", format!("{}=…", opt.name), opt.help))?;
            }
        }
        let names: Vec<_> = DRIVERS.iter().map(|d| d.name()).collect();
        line(&format!("filesystems:\n  {}", names.join("\n  ")))?;
        Ok(Exit::Done)
    }
}
