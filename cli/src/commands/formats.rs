//! `racker formats`

use clap::Args;
use racker_formats::container::CONTAINERS;
use racker_formats::drivers::FORMATS;
use racker_formats::package;
use racker_fs::drivers::DRIVERS;
use serde_json::{Value, json};

use crate::exit::Exit;
use crate::fault::Outcome;
use crate::output::{self, line};

/// What racker reads, writes and makes, with the options of new images
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  racker formats")]
pub(crate) struct Formats {
    /// Print JSON
    #[arg(long, conflicts_with = "markdown")]
    json: bool,
    /// Print the table as Markdown, without options
    #[arg(long)]
    markdown: bool,
}

/// One line of the table.
struct Row {
    name: &'static str,
    kind: &'static str,
    write: bool,
    create: bool,
}

impl Formats {
    pub(super) fn run(self) -> Outcome<Exit> {
        if self.json {
            output::json(&view())?;
        } else if self.markdown {
            for text in markdown() {
                line(&text)?;
            }
        } else {
            text()?;
        }
        Ok(Exit::Done)
    }
}

/// Formats, containers and filesystems, from their lists.
fn rows() -> Vec<Row> {
    let formats = FORMATS.iter().flat_map(|f| {
        f.kinds().iter().map(|k| Row { name: f.name(), kind: k.name, write: k.write, create: k.create })
    });
    let containers = CONTAINERS.iter().map(|c| Row {
        name: c.name(),
        kind: "around any of these",
        write: false,
        create: false,
    });
    let packages = package::NAMES.iter().flat_map(|name| {
        let kinds = package::kinds(name).iter();
        kinds.map(|kind| Row { name, kind, write: false, create: true })
    });
    let filesystems = DRIVERS.iter().flat_map(|d| {
        d.kinds().iter().map(|(kind, write)| Row { name: d.name(), kind, write: *write, create: false })
    });
    formats.chain(containers).chain(packages).chain(filesystems).collect()
}

fn view() -> Value {
    let formats: Vec<_> = FORMATS
        .iter()
        .map(|f| {
            let options: Vec<_> =
                f.options().iter().map(|o| json!({ "name": o.name, "help": o.help })).collect();
            let kinds: Vec<_> = f
                .kinds()
                .iter()
                .map(|k| json!({ "name": k.name, "read": true, "write": k.write, "create": k.create }))
                .collect();
            json!({ "name": f.name(), "aliases": f.aliases(), "suffixes": f.suffixes(), "kinds": kinds,
                    "options": options })
        })
        .collect();
    let containers: Vec<_> = CONTAINERS.iter().map(|c| c.name()).collect();
    let filesystems: Vec<_> = DRIVERS
        .iter()
        .map(|d| {
            let kinds: Vec<_> = d
                .kinds()
                .iter()
                .map(|(kind, write)| json!({ "name": kind, "read": true, "write": write }))
                .collect();
            json!({ "name": d.name(), "kinds": kinds })
        })
        .collect();
    let packages: Vec<_> = package::NAMES
        .iter()
        .map(|name| {
            let options = package::options(name).unwrap_or_default().iter();
            let options: Vec<_> = options.map(|o| json!({ "name": o.name, "help": o.help })).collect();
            json!({ "name": name, "kinds": package::kinds(name), "options": options })
        })
        .collect();
    json!({ "formats": formats, "containers": containers, "packages": packages, "filesystems": filesystems })
}

fn markdown() -> Vec<String> {
    let yes = |is: bool| if is { "yes" } else { "–" };
    let mut out =
        vec!["| | | reads | writes in place | creates |".into(), "| --- | --- | --- | --- | --- |".into()];
    let mut last = "";
    for row in rows() {
        let name = if row.name == last { "" } else { row.name };
        last = row.name;
        out.push(format!("| {name} | {} | yes | {} | {} |", row.kind, yes(row.write), yes(row.create)));
    }
    out
}

fn text() -> Outcome<()> {
    let yes = |is: bool| if is { "yes" } else { "-" };
    line(&format!("{:8} {:36} {:5} {:6} {}", "NAME", "KIND", "READ", "WRITE", "CREATE"))?;
    let mut last = "";
    for row in rows() {
        let name = if row.name == last { "" } else { row.name };
        last = row.name;
        line(&format!("{name:8} {:36} {:5} {:6} {}", row.kind, "yes", yes(row.write), yes(row.create)))?;
    }
    for format in FORMATS.iter().filter(|f| !f.options().is_empty()) {
        let suffixes = format.suffixes().join(", .");
        line(&format!("\noptions of a new {} (.{suffixes}):", format.name()))?;
        for opt in format.options() {
            line(&format!("  -o {:20} {}", format!("{}=…", opt.name), opt.help))?;
        }
    }
    for name in package::NAMES {
        line(&format!("\noptions of a new {name}:"))?;
        for opt in package::options(name).unwrap_or_default() {
            line(&format!("  -o {:20} {}", format!("{}=…", opt.name), opt.help))?;
        }
    }
    Ok(())
}
