//! The `racker` command: parses what was typed, runs one command, prints the error, exits.

mod background;
mod backing;
mod clean;
mod commands;
mod control;
mod exit;
mod exports;
mod fault;
mod files;
mod interrupt;
mod output;
mod overlay;
mod progress;
mod remote;
mod target;
mod typed;

use std::io::Write;

use clap::Parser;
use clap::error::ErrorKind;

use crate::commands::Racker;
use crate::exit::Exit;

fn main() -> std::process::ExitCode {
    let parsed = match Racker::try_parse() {
        Ok(parsed) => parsed,
        Err(e) => {
            let help = matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // A closed pipe is nothing to report.
            let _ = e.print();
            return if help { Exit::Done } else { Exit::Usage }.into();
        }
    };
    match parsed.run() {
        Ok(exit) => exit.into(),
        Err(e) if e.is_broken_pipe() => Exit::Done.into(),
        Err(e) => {
            let _ = std::io::stdout().flush();
            eprint!("{}", e.report());
            e.status().into()
        }
    }
}
