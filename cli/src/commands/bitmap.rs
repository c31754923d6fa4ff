//! `racker disk bitmap`

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use racker_formats::open::OpenOptions;
use racker_formats::registry::{BitmapChange, BitmapFacts, BitmapSource, Bitmaps, Image};

use crate::exit::Exit;
use crate::fault::{About, Failure, Outcome};
use crate::output;
use crate::remote::open;
use crate::target::ImageArgs;

/// Make, clear, merge and remove the bitmaps inside an image, which tell what was written since they were made
///
/// What is asked for is done in the order in which it is typed. Each step lands whole or not at all. A bitmap that is
/// enabled notes what virtual machines write; racker's own writes make it inconsistent, which any program can see.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  racker disk bitmap --add boot.qcow2 monday\n  \
    racker disk bitmap --add --disable -g 1M boot.qcow2 week\n  \
    racker disk bitmap --merge monday boot.qcow2 week\n  racker disk bitmap --remove boot.qcow2 monday")]
pub(crate) struct Bitmap {
    #[command(flatten)]
    image: ImageArgs,
    /// Name of the bitmap
    #[arg(value_name = "BITMAP")]
    name: String,
    #[command(flatten)]
    steps: Steps,
    /// With --merge: the image that the other bitmap is in, instead of IMAGE
    #[arg(short = 'b', long, value_name = "FILE", requires = "merge")]
    source: Option<PathBuf>,
    /// Format of that image
    #[arg(short = 'F', long, value_name = "FORMAT", requires = "source")]
    source_format: Option<String>,
    /// With --add: bytes of the disk that one bit stands for
    #[arg(short = 'g', long, value_name = "SIZE", value_parser = output::size, requires = "add")]
    granularity: Option<u64>,
}

/// One thing to do.
#[derive(Clone, Debug)]
enum Step {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

/// What is to be done, in the order in which it was typed.
#[derive(Clone, Debug)]
struct Steps(Vec<Step>);

/// The words for what takes no value.
const FLAGS: &[(&str, Step, &str)] = &[
    ("add", Step::Add, "Make it; it is enabled unless --disable follows"),
    ("remove", Step::Remove, "Take it away"),
    ("clear", Step::Clear, "Forget what it has noted"),
    ("enable", Step::Enable, "Let it note what is written from now on"),
    ("disable", Step::Disable, "Let it note nothing any more"),
];

impl FromArgMatches for Steps {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found = Vec::new();
        for (name, step, _) in FLAGS {
            if matches.value_source(name) == Some(ValueSource::CommandLine) {
                found.extend(matches.index_of(name).map(|at| (at, step.clone())));
            }
        }
        let names = matches.get_many::<String>("merge").into_iter().flatten();
        found.extend(matches.indices_of("merge").into_iter().flatten().zip(names.cloned().map(Step::Merge)));
        found.sort_by_key(|(at, _)| *at);
        Ok(Self(found.into_iter().map(|(_, step)| step).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Steps {
    fn augment_args(command: Command) -> Command {
        let flag = |(name, _, help): &(&'static str, Step, &'static str)| {
            Arg::new(*name).long(*name).action(ArgAction::SetTrue).help(*help)
        };
        let merge = Arg::new("merge").long("merge").value_name("OTHER").action(ArgAction::Append);
        let merge = merge.help("Add what this bitmap has noted");
        let names = FLAGS.iter().map(|(name, ..)| *name).chain(["merge"]);
        let group = ArgGroup::new("steps").args(names).required(true).multiple(true);
        command.args(FLAGS.iter().map(flag)).arg(merge).group(group)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Bitmap {
    pub(super) fn run(self) -> Outcome<Exit> {
        let path = &self.image.image;
        // What its parents hold does not matter.
        let options = OpenOptions { alone: true, ..self.image.how.options(true) };
        let opened = open(path, &options).about(path)?;
        let bitmaps = bitmaps(opened.image.as_ref()).about(path)?;
        let mut made = false;
        for step in &self.steps.0 {
            let done = self.step(step, opened.image.size(), bitmaps);
            if done.is_err() && made && matches!(step, Step::Merge(_)) {
                // What was made for it is of no use without it.
                bitmaps.change(&self.name, BitmapChange::Remove).about(path)?;
            }
            done.about(path)?;
            made |= matches!(step, Step::Add);
        }
        Ok(Exit::Done)
    }

    fn step(&self, step: &Step, size: u64, bitmaps: &dyn Bitmaps) -> Outcome<()> {
        let change = match step {
            // As qemu-img has it, a bitmap that is made is enabled before anybody disables it.
            Step::Add => BitmapChange::Add { granularity: self.granularity, enabled: true },
            Step::Remove => BitmapChange::Remove,
            Step::Clear => BitmapChange::Clear,
            Step::Enable => BitmapChange::Enable(true),
            Step::Disable => BitmapChange::Enable(false),
            Step::Merge(other) => return self.merge(other, size, bitmaps),
        };
        Ok(bitmaps.change(&self.name, change)?)
    }

    fn merge(&self, other: &str, size: u64, here: &dyn Bitmaps) -> Outcome<()> {
        let Some(path) = &self.source else {
            return merge(here, &self.name, here, other, size);
        };
        let format = self.source_format.as_deref();
        let options = OpenOptions { format, alone: true, ..self.image.how.options(false) };
        let source = open(path, &options).about(path)?;
        let there = self::bitmaps(source.image.as_ref()).about(path)?;
        merge(here, &self.name, there, other, source.image.size())
    }
}

/// The bitmaps of an image, if its format has any.
pub(super) fn bitmaps(image: &dyn Image) -> Outcome<&dyn Bitmaps> {
    let none = || Failure::new(format!("{} images hold no bitmaps", image.facts().format));
    image.bitmaps().ok_or_else(none)
}

/// Adds what the bitmap `other` of `there`, an image of `size` bytes, has to the bitmap `name` of `here`.
fn merge(here: &dyn Bitmaps, name: &str, there: &dyn Bitmaps, other: &str, size: u64) -> Outcome<()> {
    let missing = || Failure::new(format!("there is no bitmap {other:?}"));
    let facts = there.list()?.into_iter().find(|bitmap| bitmap.name == other).ok_or_else(missing)?;
    let bits = there.bits(other)?;
    let source = BitmapSource { bits: &bits, granularity: facts.granularity, disk_size: size };
    Ok(here.change(name, BitmapChange::Merge(source))?)
}

/// Refuses bitmaps that cannot be relied on, unless they may be left out, and such as `to` has already.
pub(super) fn may_copy(from: &dyn Image, to: Option<&dyn Image>, skip: bool) -> Outcome<()> {
    let there =
        to.map(|image| bitmaps(image)?.list().map_err(Failure::from)).transpose()?.unwrap_or_default();
    for facts in bitmaps(from)?.list()? {
        if !facts.consistent && !skip {
            let failure = Failure::new(format!("the bitmap {:?} cannot be relied on", facts.name));
            return Err(failure.hint("leave out such bitmaps with --skip-broken-bitmaps"));
        }
        if facts.consistent && there.iter().any(|bitmap| bitmap.name == facts.name) {
            return Err(Failure::new(format!("the target has a bitmap {:?} already", facts.name)));
        }
    }
    Ok(())
}

/// Makes the bitmaps of one image in another one; tells of those that cannot be relied on.
pub(super) fn copy(from: &dyn Image, to: &dyn Image, mut left_out: impl FnMut(&str)) -> Outcome<()> {
    let (there, here) = (bitmaps(from)?, bitmaps(to)?);
    for BitmapFacts { name, granularity, enabled, consistent } in there.list()? {
        if !consistent {
            left_out(&name);
            continue;
        }
        // It notes nothing before it is complete.
        here.change(&name, BitmapChange::Add { granularity: Some(granularity), enabled: false })?;
        merge(here, &name, there, &name, from.size())?;
        if enabled {
            here.change(&name, BitmapChange::Enable(true))?;
        }
    }
    Ok(())
}
