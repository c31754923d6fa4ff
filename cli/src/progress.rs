//! Progress of long work: a bar on a terminal, lines of JSON when asked, nothing otherwise.

use std::io::{IsTerminal, Read};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use racker_formats::wire::len64;

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// A bar when standard error is a terminal.
    Auto,
    /// A line of JSON on standard error every half second.
    Json,
    /// Nothing.
    None,
}

/// The options that rule progress and notes.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ProgressArgs {
    /// No progress and no notes
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// How progress is shown on standard error
    #[arg(id = "progress", long, value_name = "HOW", default_value = "auto", global = true)]
    shown: Mode,
}

impl ProgressArgs {
    /// A bar over `total` bytes of `what`.
    pub(crate) fn start(self, what: &'static str, total: u64) -> Progress {
        if self.quiet {
            return Progress::None;
        }
        match self.shown {
            Mode::Json => Progress::Json { what, total, next: Instant::now() },
            Mode::Auto if std::io::stderr().is_terminal() => {
                let bar = ProgressBar::new(total);
                let line = "{msg} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
                if let Ok(style) = ProgressStyle::with_template(line) {
                    bar.set_style(style.progress_chars("=> "));
                }
                bar.set_message(what);
                Progress::Bar(bar)
            }
            Mode::Auto | Mode::None => Progress::None,
        }
    }

    /// A reader of `total` bytes that moves a bar along.
    pub(crate) fn reading<R: Read>(self, what: &'static str, from: R, total: u64) -> Counted<R> {
        Counted { from, done: 0, total, bar: self.start(what, total) }
    }

    /// A remark for people, on standard error.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            eprintln!("note: {}", crate::clean::clean(text));
        }
    }
}

/// Work in progress.
#[derive(Debug)]
pub(crate) enum Progress {
    /// Nothing is shown.
    None,
    /// A bar.
    Bar(ProgressBar),
    /// Lines of JSON.
    Json {
        /// What is being done.
        what: &'static str,
        /// Bytes in all.
        total: u64,
        /// When the next line is due.
        next: Instant,
    },
}

impl Progress {
    /// So many bytes are done.
    pub(crate) fn at(&mut self, done: u64) {
        match self {
            Self::None => {}
            Self::Bar(bar) => bar.set_position(done),
            Self::Json { what, total, next } => {
                let now = Instant::now();
                if now >= *next || done >= *total {
                    *next = now.checked_add(Duration::from_millis(500)).unwrap_or(now);
                    eprintln!("{}", serde_json::json!({ "what": what, "done": done, "total": total }));
                }
            }
        }
    }

    /// The work is done.
    pub(crate) fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A reader that shows how far it is.
#[derive(Debug)]
pub(crate) struct Counted<R> {
    from: R,
    done: u64,
    total: u64,
    bar: Progress,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(buf)?;
        self.done = self.done.saturating_add(len64(n));
        self.bar.at(self.done.min(self.total));
        Ok(n)
    }
}

impl<R> Counted<R> {
    /// The work is done.
    pub(crate) fn finish(self) {
        self.bar.finish();
    }
}
