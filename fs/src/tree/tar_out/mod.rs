//! A tree as a tar stream that loses nothing: pax (POSIX.1-2024) with the additions of star, GNU tar, libarchive.
//!
//! What is in it, and who reads it:
//! * numeric owners of any size, nanosecond times, names and link targets of any length and any bytes: all;
//! * extended attributes as `SCHILY.xattr.*`, raw: GNU tar (`--xattrs --xattrs-include='*'`), bsdtar, Go (podman);
//! * ACLs both as that and as text in `SCHILY.acl.*`: GNU tar (`--acls`), bsdtar;
//! * `chattr` flags as `SCHILY.fflags`: bsdtar (GNU tar says that it ignores them);
//! * holes as GNU sparse 1.0: GNU tar, bsdtar (7-Zip lists such a file as `GNUSparseFile.0/NAME`). Space that was
//!   allocated but never written is a hole;
//! * second and later names of a node as hard links, whatever the node is; devices and pipes.
//!
//! A name stands raw in the plain header where it fits, whatever its bytes are: all readers take it as it is,
//! while libarchive would compose the letters and accents of one in a pax record. A long name that is no UTF-8
//! comes with `hdrcharset=BINARY`: libarchive needs it, GNU tar warns that it ignores it and does the right thing.
//!
//! Where readers disagree: libarchive takes the fraction of a time before 1970 as counting upwards (POSIX and GNU
//! tar: downwards), and knows no ACL of a user above 2^31.
//!
//! What tar cannot hold: sockets (left out, with a note), project ids, birth times, generation numbers, change
//! times that a reader would restore.
//!
//! The stream depends on the tree alone: the same tree gives the same bytes.

mod acl;
mod owners;
mod pax;
mod ustar;

use std::io::{BufWriter, Write};

use racker_formats::block::Span;
use racker_formats::error::Result;
use racker_formats::wire::len64;

use super::content::{PIECE, data_spans, link_target, read_span, xattrs};
use super::links::Links;
use super::report::Meter;
use super::{Entry, Go, Limits, Notes, Progress, ProgressFn, Step, Tree, TreeFault, walk};
use crate::filesystem::{Flags, NodeKind, Time};
use pax::Records;
use ustar::{BLOCK, Fields, Type};

pub use owners::OwnerNames;

/// Readers of tapes take 20 blocks at a time; a stream is padded to that.
const RECORD_BYTES: u64 = 20 * 512;

/// How a tar stream is made.
#[derive(Default)]
pub struct TarOptions<'a> {
    /// Names to write beside the numbers of owners; none: numbers alone, which mean the same on every host.
    pub names: Option<OwnerNames>,
    /// Also writes the times of last access and of last change of the node.
    pub all_times: bool,
    /// What the walk may take.
    pub limits: Limits,
    /// Told how far it is.
    pub progress: Option<ProgressFn<'a>>,
}

/// What went into the stream.
#[derive(Clone, Debug, Default)]
pub struct TarSummary {
    /// Members and bytes of content.
    pub done: Progress,
    /// What could not go in: sockets, mount points that the tree does not have.
    pub notes: Notes,
}

/// Writes the tree as an uncompressed tar stream; names begin with `./`, the root is `./`.
pub fn tar_out(tree: &Tree, out: &mut dyn Write, options: TarOptions<'_>) -> Result<TarSummary> {
    let TarOptions { names, all_times, limits, progress } = options;
    let mut writer = Writer {
        out: Out { stream: BufWriter::with_capacity(PIECE, out), written: 0, failed: None },
        names: names.unwrap_or_default(),
        all_times,
        links: Links::default(),
        meter: Meter::new(progress),
        notes: Notes::default(),
        buf: Vec::new(),
    };
    let walked = walk(tree, &limits, &mut |step| {
        if let Step::Node(entry) = step {
            writer.node(&entry)?;
        }
        Ok(Go::On)
    });
    // A full disk or a closed pipe has nothing to do with the path that was being read.
    if let Some(e) = writer.out.failed.take() {
        return Err(e.into());
    }
    let walked = walked?;
    for path in &walked.unused_mounts {
        writer.notes.add(|| format!("/{}: no such directory to mount on", String::from_utf8_lossy(path)));
    }
    writer.out.end()?;
    Ok(TarSummary { done: writer.meter.done(), notes: writer.notes })
}

struct Writer<'a, 'o> {
    out: Out<'o>,
    names: OwnerNames,
    all_times: bool,
    links: Links,
    meter: Meter<'a>,
    notes: Notes,
    buf: Vec<u8>,
}

/// The stream.
struct Out<'o> {
    stream: BufWriter<&'o mut dyn Write>,
    written: u64,
    failed: Option<std::io::Error>,
}

/// Where a file's bytes are.
struct Map {
    /// Stretches of data, a last empty one at the end of a file that ends in a hole included.
    spans: u64,
    /// Bytes of data.
    data: u64,
    /// Bytes of the map as text, not padded.
    text: u64,
    /// Where the last stretch ends.
    end: u64,
}

impl Writer<'_, '_> {
    fn node(&mut self, entry: &Entry<'_>) -> Result<()> {
        let kind = entry.stat.kind;
        if kind == NodeKind::Socket {
            self.notes.add(|| format!("{}: a socket, which tar cannot hold", entry.shown()));
            return Ok(());
        }
        if let Some(first) = self.links.first_path(entry)? {
            let target = [b"./", first.as_slice()].concat();
            self.header(entry, Type::HardLink, &target, 0, None)?;
            return self.meter.node();
        }
        match kind {
            NodeKind::File => self.file(entry)?,
            NodeKind::Link => {
                let target = link_target(entry)?;
                self.header(entry, Type::Node(kind), &target, 0, None)?;
            }
            _ => self.header(entry, Type::Node(kind), b"", 0, None)?,
        }
        self.meter.node()
    }

    fn file(&mut self, entry: &Entry<'_>) -> Result<()> {
        let map = measure(entry)?;
        let kind = Type::Node(NodeKind::File);
        if map.data == entry.stat.size {
            self.header(entry, kind, b"", map.data, None)?;
        } else {
            let padded = map.text.saturating_add(len64(ustar::padding(map.text)));
            self.header(entry, kind, b"", padded.saturating_add(map.data), Some(entry.stat.size))?;
            self.map(entry, &map)?;
        }
        let Self { out, meter, buf, .. } = self;
        let mut left = map.data;
        data_spans(entry, &mut |span| {
            read_span(entry, span, buf, &mut |_, bytes| {
                left = match left.checked_sub(len64(bytes.len())) {
                    Some(left) => left,
                    // The header is out: a file that changes while it is read cannot be finished.
                    None => return Err(changed(entry)),
                };
                out.put(bytes)?;
                meter.bytes(len64(bytes.len()))
            })
        })?;
        if left > 0 {
            return Err(changed(entry));
        }
        self.out.pad()
    }

    /// The map of a sparse file: the number of stretches, then offset and length of each, one a line.
    fn map(&mut self, entry: &Entry<'_>, map: &Map) -> Result<()> {
        self.out.put(format!("{}\n", map.spans).as_bytes())?;
        let mut end = 0;
        data_spans(entry, &mut |span| {
            end = span.end();
            self.out.put(format!("{}\n{}\n", span.start(), span.len()).as_bytes())
        })?;
        if end < entry.stat.size {
            self.out.put(format!("{}\n0\n", entry.stat.size).as_bytes())?;
        }
        self.out.pad()
    }

    /// Writes what precedes a member's content. `real_size` is a sparse file's.
    fn header(
        &mut self,
        entry: &Entry<'_>,
        kind: Type,
        target: &[u8],
        size: u64,
        real_size: Option<u64>,
    ) -> Result<()> {
        let stat = entry.stat;
        let slash: &[u8] = if stat.kind == NodeKind::Dir && !entry.path.is_empty() { b"/" } else { b"" };
        let name = [b"./", entry.path, slash].concat();
        let mut records = Records::default();
        if let Some(real_size) = real_size {
            sparse_records(&mut records, &name, real_size)?;
        } else {
            path_record(&mut records, "path", &name, ustar::name_fits(&name))?;
        }
        path_record(&mut records, "linkpath", target, target.len() <= 100)?;
        if !ustar::fits(size, 12) {
            records.number("size", size)?;
        }
        self.stat_records(&mut records, entry)?;
        // A further name says nothing about the node that the first one did not say.
        if kind != Type::HardLink {
            node_records(&mut records, entry)?;
        }
        let short = if real_size.is_some() { beside(&name, "GNUSparseFile.0") } else { name.clone() };
        let (uname, gname) = (self.names.user(stat.uid).to_vec(), self.names.group(stat.gid).to_vec());
        let fields = Fields {
            name: &short,
            kind,
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size,
            mtime: stat.mtime.sec,
            target,
            uname: &uname,
            gname: &gname,
            rdev: stat.rdev,
        };
        if !records.is_empty() {
            self.extended(&name, &fields, &records)?;
        }
        self.out.put(&fields.to_bytes())
    }

    /// The member that carries the records of the next one.
    fn extended(&mut self, name: &[u8], fields: &Fields<'_>, records: &Records) -> Result<()> {
        let name = beside(name, "PaxHeaders");
        let size = len64(records.as_bytes().len());
        let header = Fields {
            name: &name,
            kind: Type::Pax,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size,
            mtime: fields.mtime,
            target: b"",
            uname: b"",
            gname: b"",
            rdev: (0, 0),
        };
        self.out.put(&header.to_bytes())?;
        self.out.put(records.as_bytes())?;
        self.out.pad()
    }

    fn stat_records(&self, records: &mut Records, entry: &Entry<'_>) -> Result<()> {
        let stat = entry.stat;
        for (keyword, id) in [("uid", stat.uid), ("gid", stat.gid)] {
            if !ustar::fits(id.into(), 8) {
                records.number(keyword, id.into())?;
            }
        }
        let whole = |t: Time| t.nsec == 0 && u64::try_from(t.sec).is_ok_and(|s| ustar::fits(s, 12));
        if !whole(stat.mtime) {
            records.time("mtime", stat.mtime)?;
        }
        if self.all_times {
            records.time("atime", stat.atime)?;
            records.time("ctime", stat.ctime)?;
        }
        Ok(())
    }
}

impl Out<'_> {
    /// Zeroes up to the next block.
    fn pad(&mut self) -> Result<()> {
        let pad = ustar::padding(self.written);
        self.put([0; BLOCK].get(..pad).unwrap_or_default())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.written = self.written.saturating_add(len64(bytes.len()));
        let written = self.stream.write_all(bytes);
        self.keep(written)
    }

    /// Sets the error aside for the one who knows that it is the stream's.
    fn keep(&mut self, done: std::io::Result<()>) -> Result<()> {
        done.map_err(|e| {
            let kind = e.kind();
            self.failed.get_or_insert(e);
            std::io::Error::from(kind).into()
        })
    }

    /// Two empty blocks end a stream.
    fn end(&mut self) -> Result<()> {
        self.put(&[0; BLOCK])?;
        self.put(&[0; BLOCK])?;
        while self.written.checked_rem(RECORD_BYTES).is_some_and(|over| over != 0) {
            self.put(&[0; BLOCK])?;
        }
        Ok(self.stream.flush()?)
    }
}

/// What the content of a file could not keep: it gave another number of bytes than a moment before.
fn changed(entry: &Entry<'_>) -> racker_formats::error::Error {
    TreeFault::ShortRead { at: entry.stat.size, size: entry.stat.size }.into()
}

/// Finds out how large a file's data and its map are, without keeping the map.
fn measure(entry: &Entry<'_>) -> Result<Map> {
    let size = entry.stat.size;
    let mut map = Map { spans: 0, data: 0, text: 0, end: 0 };
    data_spans(entry, &mut |span| {
        map.add(span);
        Ok(())
    })?;
    if map.end < size {
        map.add(Span::new(size, 0)?);
    }
    map.text = map.text.saturating_add(len64(map.spans.to_string().len())).saturating_add(1);
    Ok(map)
}

impl Map {
    fn add(&mut self, span: Span) {
        let digits = span.start().to_string().len().saturating_add(span.len().to_string().len());
        self.text = self.text.saturating_add(len64(digits)).saturating_add(2);
        self.spans = self.spans.saturating_add(1);
        self.data = self.data.saturating_add(span.len());
        self.end = span.end();
    }
}

/// GNU sparse 1.0: the real name and size are here, the map precedes the content.
fn sparse_records(records: &mut Records, name: &[u8], size: u64) -> Result<()> {
    if std::str::from_utf8(name).is_err() {
        records.text("hdrcharset", "BINARY")?;
    }
    records.number("GNU.sparse.major", 1)?;
    records.number("GNU.sparse.minor", 0)?;
    records.add(b"GNU.sparse.name", name)?;
    records.number("GNU.sparse.realsize", size)
}

/// A path that the plain header cannot hold.
fn path_record(records: &mut Records, keyword: &str, path: &[u8], fits: bool) -> Result<()> {
    if fits {
        return Ok(());
    }
    if std::str::from_utf8(path).is_err() {
        records.text("hdrcharset", "BINARY")?;
    }
    records.add(keyword.as_bytes(), path)
}

/// Extended attributes, ACLs, flags, large device numbers.
fn node_records(records: &mut Records, entry: &Entry<'_>) -> Result<()> {
    let stat = entry.stat;
    if matches!(stat.kind, NodeKind::Char | NodeKind::Block) {
        for (keyword, n) in [("SCHILY.devmajor", stat.rdev.0), ("SCHILY.devminor", stat.rdev.1)] {
            if !ustar::fits(n.into(), 8) {
                records.number(keyword, n.into())?;
            }
        }
    }
    let words: Vec<&str> =
        FLAG_WORDS.iter().filter(|(f, _)| stat.flags.contains(*f)).map(|(_, w)| *w).collect();
    if !words.is_empty() {
        records.text("SCHILY.fflags", &words.join(","))?;
    }
    for (name, value) in xattrs(entry)? {
        if let Some(keyword) = acl::keyword(&name)
            && let Some(text) = acl::to_text(&value)
        {
            records.text(keyword, &text)?;
        }
        records.xattr(&name, &value)?;
    }
    Ok(())
}

/// libarchive's words for flags (`archive_entry_fflags_text`).
const FLAG_WORDS: &[(Flags, &str)] = &[
    (Flags::APPEND, "sappnd"),
    (Flags::IMMUTABLE, "schg"),
    (Flags::NODUMP, "nodump"),
    (Flags::NOATIME, "noatime"),
    (Flags::PROJINHERIT, "projinherit"),
    (Flags::SYNC, "sync"),
];

/// `dir/FOLDER/base` for `dir/base`: where readers that know no pax put what they do not understand.
fn beside(name: &[u8], folder: &str) -> Vec<u8> {
    let inner = name.strip_suffix(b"/").unwrap_or(name);
    let cut = inner.iter().rposition(|b| *b == b'/').map_or(0, |i| i.saturating_add(1));
    let (dir, base) = inner.split_at_checked(cut).unwrap_or((b"", inner));
    let long = [dir, folder.as_bytes(), b"/", base].concat();
    if ustar::name_fits(&long) { long } else { [folder.as_bytes(), b"/", base].concat() }
}

#[cfg(test)]
mod tests;
