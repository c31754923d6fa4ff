//! Files and folders of the host into a disk that is being edited, as `cp -a` does.
//!
//! Kept are modes, owners (as numbers), times, hard links within one call, devices, extended attributes as far as
//! the user may read them, and holes.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use racker_formats::block::Span;
use racker_formats::error::{Result, Within};
use racker_formats::wire::len64;
use rustix::fs::{OFlags, SeekFrom, lgetxattr, llistxattr, major, minor, seek};
use rustix::io::Errno;

use super::put::{Meta, Put};
use super::report::Meter;
use super::{Progress, ProgressFn, TreeFault};
use crate::filesystem::{Name, NewKind, Time};

/// Bytes of content in memory.
const PIECE: usize = 1 << 20;
/// Bytes of all names, or of one value, of extended attributes: the kernel's limit.
const XATTR_MAX: usize = 64 << 10;
/// Folders within each other.
const DEPTH_MAX: usize = 4096;
/// Names of files with several links that are remembered.
const LINKS_MAX: usize = 4 << 20;

/// How files are copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct CopyOptions {
    /// Owner and group of everything, instead of those on the host.
    pub owner: Option<(u32, u32)>,
}

/// Copies from the host, one call after the other.
#[derive(Debug)]
pub struct CopyIn<'c, 'p, 't> {
    put: &'c mut Put<'p, 't>,
    options: CopyOptions,
    /// Files with several names, by device and inode.
    links: HashMap<(u64, u64), Vec<Name>>,
}

impl<'c, 'p, 't> CopyIn<'c, 'p, 't> {
    /// Copies by way of `put`.
    pub fn new(put: &'c mut Put<'p, 't>, options: CopyOptions) -> Self {
        Self { put, options, links: HashMap::new() }
    }

    /// Copies `source` and what is below it to the path `to` below the directory of the [`Put`].
    pub fn copy(&mut self, source: &Path, to: &[Name], tell: Option<ProgressFn<'_>>) -> Result<Progress> {
        let mut meter = Meter::new(tell);
        let mut buf = vec![0; PIECE];
        let mut stack = vec![(source.to_path_buf(), to.to_vec())];
        while let Some((source, to)) = stack.pop() {
            let is_dir = self.node(&source, &to, &mut buf, &mut meter).within(|| source.display())?;
            meter.node()?;
            if !is_dir {
                continue;
            }
            if to.len() >= DEPTH_MAX {
                return Err(TreeFault::Deep { max: DEPTH_MAX }.into());
            }
            for (path, name) in listing(&source).within(|| source.display())? {
                let mut below = to.clone();
                below.push(name);
                stack.push((path, below));
            }
        }
        Ok(meter.done())
    }

    /// Copies one node; says whether it is a folder.
    fn node(&mut self, source: &Path, to: &[Name], buf: &mut [u8], meter: &mut Meter<'_>) -> Result<bool> {
        let stat = source.symlink_metadata()?;
        let kind = stat.file_type();
        if !kind.is_dir() && stat.nlink() > 1 {
            if let Some(first) = self.links.get(&(stat.dev(), stat.ino())) {
                self.put.link(to, &first.clone())?;
                return Ok(false);
            }
            if self.links.len() >= LINKS_MAX {
                return Err(TreeFault::Many { max: len64(LINKS_MAX) }.into());
            }
            self.links.insert((stat.dev(), stat.ino()), to.to_vec());
        }
        let meta = self.meta(source, &stat)?;
        let rdev = (major(stat.rdev()), minor(stat.rdev()));
        let target;
        let new = if kind.is_dir() {
            NewKind::Dir
        } else if kind.is_symlink() {
            target = std::fs::read_link(source)?;
            NewKind::Link(target.as_os_str().as_bytes())
        } else if kind.is_char_device() {
            NewKind::Char(rdev.0, rdev.1)
        } else if kind.is_block_device() {
            NewKind::Block(rdev.0, rdev.1)
        } else if kind.is_fifo() {
            NewKind::Fifo
        } else if kind.is_socket() {
            NewKind::Socket
        } else {
            self.file(source, &stat, to, &meta, buf, meter)?;
            return Ok(false);
        };
        self.put.node(to, new, &meta)?;
        Ok(kind.is_dir())
    }

    fn file(
        &mut self,
        source: &Path,
        stat: &Metadata,
        to: &[Name],
        meta: &Meta,
        buf: &mut [u8],
        meter: &mut Meter<'_>,
    ) -> Result<()> {
        let open = rustix::fs::open(
            source,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        );
        let file = File::from(open.map_err(std::io::Error::from)?);
        let Some(spot) = self.put.node(to, NewKind::File, meta)? else { return Ok(()) };
        let size = stat.len();
        let mut at = 0u64;
        while let Some(data) = data_from(&file, at, size)? {
            let mut rest = data;
            while !rest.is_empty() {
                let want = usize::try_from(rest.len()).unwrap_or(buf.len()).min(buf.len());
                let got = file.read_at(buf.get_mut(..want).unwrap_or_default(), rest.start())?;
                if got == 0 {
                    return Err(TreeFault::ShortRead { at: rest.start(), size }.into());
                }
                self.put.write(spot, rest.start(), buf.get(..got).unwrap_or_default())?;
                meter.bytes(len64(got))?;
                rest = rest.skip(len64(got));
            }
            at = data.end();
        }
        self.put.finish_file(spot, size, meta)
    }

    fn meta(&self, source: &Path, stat: &Metadata) -> Result<Meta> {
        let time = |sec, nsec| Time { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
        let (uid, gid) = self.options.owner.unwrap_or((stat.uid(), stat.gid()));
        Ok(Meta {
            mode: stat.mode() & 0o7777,
            uid,
            gid,
            atime: Some(time(stat.atime(), stat.atime_nsec())),
            mtime: time(stat.mtime(), stat.mtime_nsec()),
            xattrs: xattrs(source)?,
        })
    }
}

/// What a folder holds, the last name first: it is taken from the end.
fn listing(folder: &Path) -> Result<Vec<(PathBuf, Name)>> {
    let mut below = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        below.push((entry.path(), Name::new(entry.file_name().as_bytes())?));
    }
    below.sort_by(|(_, a), (_, b)| b.cmp(a));
    Ok(below)
}

/// The first stretch of data at `at` or behind it; none if there are only holes.
fn data_from(file: &File, at: u64, size: u64) -> Result<Option<Span>> {
    if at >= size {
        return Ok(None);
    }
    let whole = Span::new(at, size.saturating_sub(at))?;
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A filesystem that does not know holes.
        Err(_) => return Ok(Some(whole)),
    };
    let end = seek(file, SeekFrom::Hole(start)).unwrap_or(size).min(size);
    if start >= size || end <= start {
        return Ok(None);
    }
    Ok(Some(Span::new(start, end.saturating_sub(start))?))
}

/// Extended attributes that the user may read. What the host's security module says about its own files
/// (`security.selinux`) stays there: it means nothing to another system.
fn xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; XATTR_MAX];
    let len = match llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        Err(e) => return Err(std::io::Error::from(e).into()),
    };
    let names = names.get(..len).unwrap_or_default();
    let mut all = Vec::new();
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let lists: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];
        let kept = [&b"user."[..], b"trusted.", b"security."].iter().any(|p| name.starts_with(p));
        if !(kept || lists.contains(&name)) || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; XATTR_MAX];
        match lgetxattr(path, name, &mut value) {
            Ok(len) => {
                value.truncate(len);
                all.push((name.to_vec(), value));
            }
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS | Errno::NOTSUP) => {}
            Err(e) => return Err(std::io::Error::from(e).into()),
        }
    }
    Ok(all)
}
