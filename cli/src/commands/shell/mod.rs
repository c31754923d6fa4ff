//! `racker disk shell`
//!
//! * [`complete`]: what the tabulator does at a terminal

mod complete;

use std::io::{BufRead, IsTerminal, Write};
use std::sync::{Arc, Mutex};

use clap::{Args, CommandFactory, Parser, Subcommand};
use racker_fs::path::View;
use rustyline::Editor;
use rustyline::history::DefaultHistory;

use self::complete::Paths;
use crate::exit::Exit;
use crate::fault::{Failure, Outcome};
use crate::files;
use crate::files::editing::{Editing, How, edit};
use crate::files::{Act, LabelArgs, Look};
use crate::progress::ProgressArgs;
use crate::target::{ImageArgs, PartitionArgs, Target};

/// Work on an image with one command after the other, in one transaction
///
/// Commands come from the terminal, from -c, or from standard input, one a line. Nothing is written before `commit`;
/// a script that ends well is committed, one that fails is not. `rollback` forgets what was done since the last commit.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk shell boot.qcow2\n  \
    racker disk shell boot.qcow2 -c 'mkdir /opt; write --text on /opt/x; chmod 600 /opt/x'\n  \
    echo 'touch /.autorelabel' | racker disk shell boot.qcow2")]
pub(crate) struct Shell {
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    which: PartitionArgs,
    /// Commands, with ; between them
    #[arg(short = 'c', long, value_name = "COMMANDS")]
    commands: Option<String>,
    #[command(flatten)]
    labels: LabelArgs,
    /// Look only: nothing can be changed
    #[arg(long)]
    read_only: bool,
}

/// One line.
#[derive(Debug, Parser)]
#[command(multicall = true, about = "Commands of the shell; HELP of one with --help behind it")]
struct Line {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Ls(files::ls::Ls),
    Cat(files::cat::Cat),
    Stat(files::stat::Stat),
    Find(files::find::Find),
    Du(files::du::Du),
    Df(files::df::Df),
    Tree(files::tree::Tree),
    CopyOut(files::copy_out::CopyOut),
    Edit(Box<files::edit::Edit>),
    CopyIn(files::copy_in::CopyIn),
    Write(files::write::Write),
    Rm(files::rm::Rm),
    Mv(files::mv::Mv),
    Ln(files::ln::Ln),
    Mkdir(files::mkdir::Mkdir),
    Touch(files::touch::Touch),
    Truncate(files::truncate::Truncate),
    Chmod(files::chmod::Chmod),
    Chown(files::chown::Chown),
    Setfattr(files::setfattr::Setfattr),
    TarIn(files::tar_in::TarIn),
    /// Put everything that was done so far into the image
    Commit,
    /// Forget everything that was done since the last commit
    Rollback,
    /// Leave without a commit
    #[command(alias = "exit", alias = "q")]
    Quit,
}

/// How the commands of one transaction ended.
enum End {
    Commit,
    Rollback,
    Quit,
    /// No more lines.
    Input,
}

impl Shell {
    pub(super) fn run(self, progress: ProgressArgs) -> Outcome<Exit> {
        let mut lines = Lines::new(self.commands.as_deref());
        let how = How { progress, no_selinux: self.labels.no_selinux };
        let interactive = lines.is_terminal();
        loop {
            let target = Target::open_for(&self.image, !self.read_only)?;
            lines.look_at(target.tree(&self.which).ok());
            let mut end = End::Input;
            let mut looked = None;
            if self.read_only {
                looked = Some(self.look_only(&target, progress, &mut lines));
            }
            let done = match looked {
                Some(done) => return done.map(|()| Exit::Done),
                None => edit(&target, &self.which, how, |editing| {
                    end = transaction(editing, &mut lines)?;
                    match end {
                        End::Commit => Ok(()),
                        End::Input if !interactive => Ok(()),
                        End::Input | End::Rollback | End::Quit => Err(Failure::thrown_away()),
                    }
                }),
            };
            // The tree holds the image, which is opened anew.
            lines.look_at(None);
            match (done, end) {
                (Err(e), _) if !e.is_thrown_away() => return Err(e),
                (_, End::Quit | End::Input) => return Ok(Exit::Done),
                _ => {}
            }
        }
    }

    fn look_only(&self, target: &Target, progress: ProgressArgs, lines: &mut Lines<'_>) -> Outcome<()> {
        let on = files::On { target, which: &self.which, progress };
        while let Some(line) = lines.next()? {
            match parsed(&line) {
                Ok(None) => {}
                Ok(Some(Verb::Quit)) => return Ok(()),
                Ok(Some(verb)) => lines.settle(match verb.look() {
                    Some(look) => look.look(on),
                    None => Err(Failure::new("the image is only looked at (--read-only)")),
                })?,
                Err(e) => lines.settle(Err(e))?,
            }
        }
        Ok(())
    }
}

/// Runs the lines up to the end of one transaction.
fn transaction(editing: &mut Editing<'_>, lines: &mut Lines<'_>) -> Outcome<End> {
    while let Some(line) = lines.next()? {
        let verb = match parsed(&line) {
            Ok(Some(verb)) => verb,
            Ok(None) => continue,
            Err(e) => {
                lines.settle(Err(e))?;
                continue;
            }
        };
        match &verb {
            Verb::Commit => return Ok(End::Commit),
            Verb::Rollback => return Ok(End::Rollback),
            Verb::Quit => return Ok(End::Quit),
            _ => {}
        }
        let on = editing.on();
        lines.settle(match (verb.look(), verb.act()) {
            (Some(look), _) => look.look(on),
            (None, Some(act)) => act.act(editing),
            (None, None) => Ok(()),
        })?;
    }
    Ok(End::Input)
}

impl Verb {
    fn look(&self) -> Option<&dyn Look> {
        Some(match self {
            Self::Ls(v) => v,
            Self::Cat(v) => v,
            Self::Stat(v) => v,
            Self::Find(v) => v,
            Self::Du(v) => v,
            Self::Df(v) => v,
            Self::Tree(v) => v,
            Self::CopyOut(v) => v,
            _ => return None,
        })
    }

    fn act(&self) -> Option<&dyn Act> {
        Some(match self {
            Self::CopyIn(v) => v,
            Self::Edit(v) => v.as_ref(),
            Self::Write(v) => v,
            Self::Rm(v) => v,
            Self::Mv(v) => v,
            Self::Ln(v) => v,
            Self::Mkdir(v) => v,
            Self::Touch(v) => v,
            Self::Truncate(v) => v,
            Self::Chmod(v) => v,
            Self::Chown(v) => v,
            Self::Setfattr(v) => v,
            Self::TarIn(v) => v,
            _ => return None,
        })
    }
}

/// What a line says; nothing if it is empty or a remark.
fn parsed(line: &str) -> Outcome<Option<Verb>> {
    let words = words(line)?;
    if words.first().is_none_or(|w| w.starts_with('#')) {
        return Ok(None);
    }
    match Line::try_parse_from(words) {
        Ok(line) => Ok(Some(line.verb)),
        Err(e) if matches!(e.kind(), clap::error::ErrorKind::DisplayHelp) => {
            let _ = e.print();
            Ok(None)
        }
        Err(e) => {
            let text = e.to_string();
            // What is missing stands on lines of its own.
            let lines = text.lines().map(str::trim).take_while(|l| !l.is_empty());
            let message = lines.collect::<Vec<_>>().join(" ");
            let failure = Failure::new(message.strip_prefix("error: ").unwrap_or(&message));
            Err(failure.hint("`help` lists the commands, `help COMMAND` tells more").exit(Exit::Usage))
        }
    }
}

/// The words of a line, as a shell has them: quotes of both kinds, and backslashes.
fn words(line: &str) -> Outcome<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' | '"' => {
                let into = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some(end) if end == c => break,
                        Some('\\') if c == '"' => into.extend(chars.next()),
                        Some(inside) => into.push(inside),
                        None => return Err(Failure::new("a quote is not closed").exit(Exit::Usage)),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

/// Cuts commands at each `;` that is not quoted.
fn commands(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let (mut quote, mut escaped) = (None, false);
    for c in text.chars() {
        match (quote, c) {
            (None, ';' | '\n') if !escaped => {
                all.push(String::new());
                continue;
            }
            (None, '\'' | '"') if !escaped => quote = Some(c),
            (Some(open), c) if c == open && !escaped => quote = None,
            _ => {}
        }
        escaped = c == '\\' && !escaped && quote != Some('\'');
        if let Some(last) = all.last_mut() {
            last.push(c);
        }
    }
    all
}

/// Where the lines come from.
enum Lines<'a> {
    Given(std::vec::IntoIter<String>),
    Script(std::io::Lines<std::io::StdinLock<'a>>),
    Terminal(Box<Editor<Paths, DefaultHistory>>, Arc<Mutex<Option<View>>>),
}

impl Lines<'_> {
    fn new(commands_given: Option<&str>) -> Self {
        if let Some(text) = commands_given {
            return Self::Given(commands(text).into_iter());
        }
        if std::io::stdin().is_terminal()
            && let Ok(mut editor) = Editor::new()
        {
            let view = Arc::<Mutex<Option<View>>>::default();
            let line = Line::command();
            let names = line.get_subcommands().map(|c| c.get_name().to_string());
            editor.set_helper(Some(Paths::new(names.collect(), Arc::clone(&view))));
            return Self::Terminal(Box::new(editor), view);
        }
        Self::Script(std::io::stdin().lock().lines())
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(..))
    }

    /// The tree whose paths are completed from now on.
    fn look_at(&self, tree: Option<View>) {
        if let Self::Terminal(_, view) = self
            && let Ok(mut view) = view.lock()
        {
            *view = tree;
        }
    }

    fn next(&mut self) -> Outcome<Option<String>> {
        std::io::stdout().flush()?;
        match self {
            Self::Given(lines) => Ok(lines.next()),
            Self::Script(lines) => Ok(lines.next().transpose()?),
            Self::Terminal(editor, _) => match editor.readline("racker> ") {
                Ok(line) => {
                    // A line that cannot be remembered was typed all the same.
                    let _ = editor.add_history_entry(&line);
                    Ok(Some(line))
                }
                Err(rustyline::error::ReadlineError::Interrupted) => Ok(Some(String::new())),
                Err(rustyline::error::ReadlineError::Eof) => Ok(None),
                Err(e) => Err(Failure::new(format!("the terminal: {e}"))),
            },
        }
    }

    /// At a terminal a mistake is told, and the next line is awaited; a script ends with it.
    fn settle(&self, done: Outcome<()>) -> Outcome<()> {
        match done {
            Err(e) if self.is_terminal() && !e.is_broken_pipe() => {
                eprint!("{}", e.report());
                Ok(())
            }
            done => done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_as_a_shell_cuts_them() {
        assert_eq!(commands("a 'b;c'; d \";\" \\;e;"), ["a 'b;c'", " d \";\" \\;e", ""]);
        assert_eq!(words(r#"write "a \" b" 'c\' d\ e """#).unwrap(), ["write", "a \" b", "c\\", "d e", ""]);
        assert!(words("'open").is_err());
    }
}
