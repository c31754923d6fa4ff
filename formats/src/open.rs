//! From a path, or a disk at hand, to the guest's disk: containers are unwrapped, the format is found, the image
//! and all that it names are opened.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block::redo::{self, RedoFault};
use crate::block::{BlockDevice, Disk};
use crate::container::{Container, Expansion, probe as probe_container};
use crate::drivers::FORMATS;
use crate::error::{Fault, Kind, Result, Within};
use crate::limits::{ARCHIVE_PROBED_MAX, CONTAINER_DEPTH_MAX};
use crate::opening::{Opening, Policy, Reference};
use crate::recognised::recognise;
use crate::registry::{Format, Image, by_name, probe, with_head};
use crate::transaction::{Transaction, open_file, recover_disk};

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions<'a> {
    /// The format's name, instead of what the content looks like. `raw` takes a file for what it is, even a
    /// compressed one; the others are looked for inside containers.
    pub format: Option<&'a str>,
    /// The member of an archive that is the disk.
    pub member: Option<&'a str>,
    /// Which files an image may name.
    pub policy: Policy,
    /// For writing.
    pub write: bool,
    /// Leave the image's parent alone: it need not be there, and what shows through from it cannot be read.
    pub alone: bool,
    /// Bytes that compressed containers may expand to, instead of what `limits` allows.
    pub expand_max: Option<u64>,
}

/// An opened image and the way to it.
#[derive(Debug)]
pub struct Opened {
    /// What the guest sees; refuses writes unless they were asked for.
    pub disk: Disk,
    /// The image itself.
    pub image: Arc<dyn Image>,
    /// Its format's name.
    pub format: &'static str,
    /// The bytes that the image lies in: the host file, or what came out of containers.
    pub file: Disk,
    /// From the host file to the image.
    pub layers: Vec<Layer>,
    /// It is taken for raw only because nothing else fits: a guest may have written anything there.
    pub guessed_raw: bool,
    path: Option<PathBuf>,
    policy: Policy,
}

impl Opened {
    /// Begins an edit of the image, which was opened for writing.
    pub fn begin(&self) -> Result<Transaction> {
        let format = by_name(self.format)?;
        let edit = Transaction::begin(self.image.clone(), &self.file, self.path.as_deref(), |staged| {
            format.open(staged, &mut Opening::new(self.path.as_deref(), self.policy, true))
        })?;
        Ok(if self.guessed_raw { edit.keep_raw() } else { edit })
    }

    /// The parent that the image names, and where its file lies, if policy allows to open it.
    pub fn parent_file(&self) -> Result<Option<(Reference, PathBuf)>> {
        let Some(reference) = self.image.facts().backing else { return Ok(None) };
        let path = Opening::new(self.path.as_deref(), self.policy, false).resolve(&reference)?;
        Ok(Some((reference, path)))
    }

    /// Whether the image lies inside an archive or a compressed stream.
    pub fn in_container(&self) -> bool {
        self.layers.len() > 1 || self.layers.iter().any(|l| l.kinds.len() > 1)
    }

    /// The way to the image, as in `a.box (gzip, tar) ▸ box.vmdk (vmdk)`.
    pub fn stack(&self) -> String {
        let layers: Vec<String> = self.layers.iter().map(Layer::to_string).collect();
        layers.join(" ▸ ")
    }
}

/// A file with a name on the way to the image, and what it is, from the outside in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// A file's name or a member's.
    pub name: String,
    /// Containers and, in the last layer, the format.
    pub kinds: Vec<&'static str>,
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.kinds.join(", "))
    }
}

/// Why no disk is found in a container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemberFault {
    /// No member is a disk.
    #[error("none of the {} members is a disk image: {}", .0.len(), list(.0))]
    None(Vec<String>),
    /// More than one is.
    #[error("several members are disk images: {}", list(.0))]
    Several(Vec<String>),
    /// The name that was given is none of them.
    #[error("there is no member {name:?}; there are {}", list(.members))]
    NoSuch {
        /// What was asked for.
        name: String,
        /// What there is.
        members: Vec<String>,
    },
    /// Too many to look into each.
    #[error("the archive has {count} members, too many to look for a disk among them")]
    Many {
        /// How many.
        count: usize,
    },
    /// A member was named, but there is no archive.
    #[error("there is no archive here that could have a member {0:?}")]
    NoArchive(String),
    /// Containers in containers.
    #[error("containers are nested more than {0} deep")]
    Deep(usize),
    /// A write to something inside a container.
    #[error("the disk lies inside {0}, where nothing can be changed")]
    Write(&'static str),
}

/// The first few names.
fn list(names: &[String]) -> String {
    let mut text = names.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > 12 {
        text.push_str(", …");
    }
    text
}

impl Fault for MemberFault {
    fn kind(&self) -> Kind {
        match self {
            Self::None(_) | Self::NoSuch { .. } => Kind::NotFound,
            Self::Several(_) | Self::NoArchive(_) | Self::Many { .. } => Kind::Invalid,
            Self::Deep(_) => Kind::Unsupported,
            Self::Write(_) => Kind::ReadOnly,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Several(names) => names.first().map(|n| format!("choose one with --member {n}")),
            Self::None(_) | Self::Many { .. } => Some("name the disk with --member NAME".into()),
            Self::Write(_) => Some("write the changed disk to a new file with --output NEW".into()),
            _ => None,
        }
    }
}

/// Opens the image at `path`, locked for what is going to happen, with any interrupted edit finished.
pub fn open(path: &Path, options: &OpenOptions<'_>) -> Result<Opened> {
    open_disk(open_file(path, options.write)?, Some(path), options)
}

/// Opens the image in `file`, which is the host file at `path` or stands for it: what the image names is looked
/// for beside `path`, and nowhere without one.
pub fn open_disk(file: Disk, path: Option<&Path>, options: &OpenOptions<'_>) -> Result<Opened> {
    let name = path.and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned());
    open_called(file, path, &name.unwrap_or_else(|| "disk".into()), options)
}

/// Opens the image in `file`, which lies on another machine, where it is called `name`. It may name no other file.
pub fn open_remote(file: Disk, name: &str, options: &OpenOptions<'_>) -> Result<Opened> {
    open_called(file, None, name, options)
}

fn open_called(file: Disk, path: Option<&Path>, name: &str, options: &OpenOptions<'_>) -> Result<Opened> {
    let forced = options.format.map(by_name).transpose()?;
    let name = name.to_string();
    let mut way = Way {
        expansion: options.expand_max.map_or_else(|| Expansion::for_file(file.size()), Expansion::at_most),
        member: options.member,
        layers: vec![Layer { name, kinds: Vec::new() }],
        depth: 0,
    };
    // Raw is the one format that any bytes have: taken at its word, and the file as it is.
    let is_raw = forced.is_some_and(|f| f.name() == "raw");
    let file = if is_raw && options.member.is_none() { file } else { way.unwrap(file)? };
    let place = way.layers.get(1..).unwrap_or_default().iter().map(|l| l.name.as_str()).collect::<Vec<_>>();
    let place = place.join(" ▸ ");
    let opened = way.open_image(file, path, forced, options);
    if place.is_empty() { opened } else { opened.within(|| place) }
}

/// The way from the host file inwards.
struct Way<'a> {
    expansion: Expansion,
    /// The member that the user named, until it is found.
    member: Option<&'a str>,
    layers: Vec<Layer>,
    depth: usize,
}

impl Way<'_> {
    /// Opens containers until there is none.
    fn unwrap(&mut self, file: Disk) -> Result<Disk> {
        let mut file = file;
        while let Some(kind) = probe_container(&file)? {
            self.depth = self.depth.saturating_add(1);
            if self.depth > CONTAINER_DEPTH_MAX {
                return Err(MemberFault::Deep(CONTAINER_DEPTH_MAX).into());
            }
            let container = kind.open(file, &mut self.expansion)?;
            if let Some(layer) = self.layers.last_mut() {
                layer.kinds.push(kind.name());
            }
            let (member, name) = self.choose(container.as_ref())?;
            if !name.is_empty() {
                self.layers.push(Layer { name: name.clone(), kinds: Vec::new() });
            }
            file = container.open(member).within(|| name)?;
        }
        match self.member {
            Some(name) => Err(MemberFault::NoArchive(name.into()).into()),
            None => Ok(file),
        }
    }

    /// The member that is the disk, and its name.
    fn choose(&mut self, container: &dyn Container) -> Result<(usize, String)> {
        let members = container.members();
        if let [only] = members
            && only.name.is_empty()
        {
            return Ok((0, String::new()));
        }
        let names: Vec<String> = members.iter().map(|m| plain_name(&m.name)).collect();
        let choice = match self.member.take() {
            Some(wanted) => named(&names, wanted)?,
            None => the_disk(container, &names)?,
        };
        Ok((choice, names.into_iter().nth(choice).unwrap_or_default()))
    }

    fn open_image(
        mut self,
        file: Disk,
        path: Option<&Path>,
        forced: Option<&'static dyn Format>,
        options: &OpenOptions<'_>,
    ) -> Result<Opened> {
        let outer = self.layers.first().and_then(|l| l.kinds.last().copied());
        if let Some(container) = outer
            && options.write
        {
            return Err(MemberFault::Write(container).into());
        }
        let format = match forced {
            Some(format) => format,
            None => probe(&file)?,
        };
        let guessed_raw = forced.is_none() && format.name() == "raw";
        if guessed_raw && with_head(&file, |head| head.first.starts_with(redo::GATE))? {
            return Err(RedoFault::Lost.into());
        }
        if guessed_raw && let Some(known) = with_head(&file, recognise)? {
            return Err(known.into());
        }
        let path = if outer.is_some() { None } else { path };
        let mut opening = Opening::new(path, options.policy, options.write);
        if options.alone {
            opening = opening.without_parent();
        }
        let image = format.open(file.clone(), &mut opening)?;
        if let Some(layer) = self.layers.last_mut() {
            layer.kinds.push(format.name());
        }
        let device: Arc<dyn BlockDevice> = image.clone();
        let disk = Disk::from_arc(device);
        let disk = if options.write { disk } else { disk.read_only() };
        let disk = match path {
            Some(path) if image.is_spread() => recover_disk(path, disk)?,
            _ => disk,
        };
        Ok(Opened {
            disk,
            image,
            format: format.name(),
            file,
            layers: self.layers,
            guessed_raw,
            path: path.map(Path::to_path_buf),
            policy: options.policy,
        })
    }
}

/// A member's name without the ways of writing it: Vagrant turns `\` into `/`, archivers put `./` before it.
fn plain_name(name: &str) -> String {
    let name = name.replace('\\', "/");
    name.split('/').filter(|p| !p.is_empty() && *p != ".").collect::<Vec<_>>().join("/")
}

/// The member that the user named: the last of that name, as an extraction would leave it; or the only one with
/// that last part.
fn named(names: &[String], wanted: &str) -> Result<usize> {
    let plain = plain_name(wanted);
    if let Some(found) = names.iter().rposition(|n| *n == plain) {
        return Ok(found);
    }
    let mut ends = names.iter().enumerate().filter(|(_, n)| n.rsplit('/').next() == Some(plain.as_str()));
    match (ends.next(), ends.next()) {
        (Some((found, _)), None) => Ok(found),
        _ => Err(MemberFault::NoSuch { name: wanted.into(), members: names.to_vec() }.into()),
    }
}

/// The one member that is a disk.
fn the_disk(container: &dyn Container, names: &[String]) -> Result<usize> {
    if names.len() > ARCHIVE_PROBED_MAX {
        return Err(MemberFault::Many { count: names.len() }.into());
    }
    let mut disks = Vec::new();
    for (i, name) in names.iter().enumerate() {
        // A later member of the same name replaces this one.
        let replaced = names.get(i.saturating_add(1)..).is_some_and(|later| later.contains(name));
        if !replaced && is_disk(&container.open(i)?, name).within(|| name)? {
            disks.push(i);
        }
    }
    let listed = || disks.iter().filter_map(|i| names.get(*i).cloned()).collect();
    match disks.as_slice() {
        [only] => Ok(*only),
        [] => Err(MemberFault::None(names.to_vec()).into()),
        _ => Err(MemberFault::Several(listed()).into()),
    }
}

/// Whether a member is a disk: by its content, or, as a raw disk can look like anything, by the name that such
/// files have.
fn is_disk(disk: &Disk, name: &str) -> Result<bool> {
    if disk.size() == 0 {
        return Ok(false);
    }
    if probe(disk)?.name() != "raw" {
        return Ok(true);
    }
    if let Some(known) = with_head(disk, recognise)? {
        return Ok(known.is_image);
    }
    let ends_in = |name: &str, ends: &[&str]| {
        name.rsplit_once('.').is_some_and(|(_, end)| ends.iter().any(|e| end.eq_ignore_ascii_case(e)))
    };
    if probe_container(disk)?.is_some() {
        // A compressed disk: told from compressed logs and the like by the name under the `.gz`.
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        return Ok(FORMATS.iter().any(|f| ends_in(stem, f.suffixes())));
    }
    Ok(ends_in(name, &["raw", "img", "dd"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_however_they_are_written() {
        let names: Vec<String> = ["a/box.vmdk", "b/x", "c/x", "a/box.vmdk"].map(String::from).to_vec();
        assert_eq!(plain_name("./Virtual Hard Disks\\a.vhd"), "Virtual Hard Disks/a.vhd");
        assert_eq!(named(&names, "./a/box.vmdk").unwrap(), 3);
        assert_eq!(named(&names, "b\\x").unwrap(), 1);
        assert_eq!(named(&names, "x").unwrap_err().kind(), Kind::NotFound);
        assert_eq!(named(&names[1..], "box.vmdk").unwrap(), 2);
    }
}
