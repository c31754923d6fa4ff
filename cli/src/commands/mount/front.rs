//! What the kernel speaks to: each request becomes a job for the thread that has the filesystem.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use racker_fs::filesystem::{NewKind, NodeKind};

use super::making::{Kind, Making};
use super::meaning::{Answer, device_parts, file_type, from_system, name};
use super::tree::{Set, Tree};
use crate::files::editing::now;

/// How long the kernel may believe what it was told: nobody else changes the filesystem.
const TTL: Duration = Duration::from_secs(1);
/// Bytes of the largest request to write.
const WRITE_MAX: u32 = 1 << 20;

/// Something to do with the filesystem.
pub(super) type Work = Box<dyn for<'a, 't> FnOnce(&'a mut Tree<'t>) + Send>;

/// What the thread that has the filesystem is told.
pub(super) enum Job {
    /// Do this.
    Do(Work),
    /// Nothing more comes: the filesystem is unmounted.
    Unmounted,
    /// It was in use when it had to be unmounted, and whoever uses it is cut off.
    CutOff,
}

/// The kernel's side.
pub(super) struct Front {
    jobs: SyncSender<Job>,
    /// The kernel looks at modes and access control lists.
    checks: bool,
}

impl Front {
    pub(super) fn new(jobs: SyncSender<Job>, checks: bool) -> Self {
        Self { jobs, checks }
    }

    /// Hands a request over. Where nobody takes it any more its reply is dropped, which answers that it failed.
    fn work(&self, work: impl for<'a, 't> FnOnce(&'a mut Tree<'t>) + Send + 'static) {
        let _ = self.jobs.send(Job::Do(Box::new(work)));
    }

    /// One that makes a node.
    fn make(&self, dir: INodeNo, text: &OsStr, making: Making, reply: ReplyEntry) {
        let name = name(text);
        self.work(move |tree| match making.make(tree, dir, name) {
            Ok((attributes, generation)) => reply.entry(&TTL, &attributes, generation),
            Err(e) => reply.error(e),
        });
    }

    /// One that is answered by success alone.
    fn done(
        &self,
        reply: ReplyEmpty,
        work: impl for<'a, 't> FnOnce(&'a mut Tree<'t>) -> Answer<()> + Send + 'static,
    ) {
        self.work(move |tree| match work(tree) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        });
    }

    /// One that is answered once all is on stable storage, where that is promised.
    fn sync(&self, reply: ReplyEmpty) {
        self.work(move |tree| {
            if tree.must_land() {
                tree.memory.waiting.push(reply);
            } else {
                reply.ok();
            }
        });
    }
}

/// The reply to a request for extended attributes, whose room the kernel names.
fn in_room(value: Answer<Vec<u8>>, room: u32, reply: ReplyXattr) {
    let value = match value {
        Ok(value) => value,
        Err(e) => return reply.error(e),
    };
    match u32::try_from(value.len()) {
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len <= room => reply.data(&value),
        _ => reply.error(Errno::ERANGE),
    }
}

fn time(time: TimeOrNow) -> racker_fs::filesystem::Time {
    match time {
        TimeOrNow::SpecificTime(time) => from_system(time),
        TimeOrNow::Now => now(),
    }
}

impl Filesystem for Front {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // What an older kernel does not have it does without.
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.add_capabilities(InitFlags::FUSE_DONT_MASK);
        let _ = config.add_capabilities(InitFlags::FUSE_DO_READDIRPLUS);
        let _ = config.add_capabilities(InitFlags::FUSE_READDIRPLUS_AUTO);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        let _ = config.add_capabilities(InitFlags::FUSE_CACHE_SYMLINKS);
        if self.checks {
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, text: &OsStr, reply: ReplyEntry) {
        let name = name(text);
        self.work(move |tree| match name.and_then(|name| tree.lookup(parent, &name)) {
            Ok((attributes, generation)) => reply.entry(&TTL, &attributes, generation),
            Err(e) => reply.error(e),
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.work(move |tree| match tree.attributes(ino) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(e) => reply.error(e),
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = Set { mode, uid, gid, size, atime: atime.map(time), mtime: mtime.map(time) };
        self.work(move |tree| match tree.set(ino, &set) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(e) => reply.error(e),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.work(move |tree| match tree.read_link(ino) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (major, minor) = device_parts(rdev);
        let kind = match NodeKind::from_mode(mode) {
            Some(NodeKind::File) => NewKind::File,
            Some(NodeKind::Char) => NewKind::Char(major, minor),
            Some(NodeKind::Block) => NewKind::Block(major, minor),
            Some(NodeKind::Fifo) => NewKind::Fifo,
            Some(NodeKind::Socket) => NewKind::Socket,
            _ => return reply.error(Errno::EINVAL),
        };
        self.make(parent, name, Making::new(req, Kind::Plain(kind), mode, umask), reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        self.make(parent, name, Making::new(req, Kind::Plain(NewKind::Dir), mode, umask), reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = Kind::Link(target.as_os_str().as_bytes().to_vec());
        self.make(parent, name, Making::new(req, kind, 0o777, 0), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, text: &OsStr, reply: ReplyEmpty) {
        let name = name(text);
        self.done(reply, move |tree| tree.remove(parent, &name?, false));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, text: &OsStr, reply: ReplyEmpty) {
        let name = name(text);
        self.done(reply, move |tree| tree.remove(parent, &name?, true));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        text: &OsStr,
        newparent: INodeNo,
        newtext: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (from, to) = (name(text), name(newtext));
        self.done(reply, move |tree| tree.rename((parent, &from?), (newparent, &to?), flags));
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let name = name(newname);
        self.work(move |tree| match name.and_then(|name| tree.link(ino, newparent, &name)) {
            Ok((attributes, generation)) => reply.entry(&TTL, &attributes, generation),
            Err(e) => reply.error(e),
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        text: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let name = name(text);
        let making = Making::new(req, Kind::Plain(NewKind::File), mode, umask);
        self.work(move |tree| match making.make(tree, parent, name) {
            Ok((attributes, generation)) => {
                tree.open(attributes.ino);
                reply.created(&TTL, &attributes, generation, FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(e),
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.work(move |tree| {
            tree.open(ino);
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.work(move |tree| match tree.read(ino, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e),
        });
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = data.to_vec();
        self.work(move |tree| match tree.write(ino, offset, &data) {
            Ok(written) => reply.written(written),
            Err(e) => reply.error(e),
        });
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.done(reply, move |tree| tree.release(ino));
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        // Nothing waits to be written: the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(reply);
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.sync(reply);
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.work(move |tree| match tree.open_dir(ino) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(e) => reply.error(e),
        });
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.work(move |tree| {
            let mut at = offset;
            for dots in [".", ".."].iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
                at = at.saturating_add(1);
                if reply.add(ino, at, fuser::FileType::Directory, dots) {
                    return reply.ok();
                }
            }
            let reading = match tree.read_dir(ino, fh, offset == 0) {
                Ok(reading) => reading,
                Err(e) => return reply.error(e),
            };
            let skip = usize::try_from(at.saturating_sub(2)).unwrap_or(usize::MAX);
            for entry in reading.entries.iter().skip(skip) {
                at = at.saturating_add(1);
                let (number, kind) = (tree.numbers().number(entry.node), file_type(tree.kind(entry)));
                if reply.add(number, at, kind, OsStr::from_bytes(entry.name.as_bytes())) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.work(move |tree| {
            let mut at = offset;
            let own = match tree.lookup_self(ino) {
                Ok(own) => own,
                Err(e) => return reply.error(e),
            };
            for dots in [".", ".."].iter().skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
                at = at.saturating_add(1);
                if reply.add(ino, at, dots, &TTL, &own.0, own.1) {
                    return reply.ok();
                }
            }
            let reading = match tree.read_dir(ino, fh, offset == 0) {
                Ok(reading) => reading,
                Err(e) => return reply.error(e),
            };
            let skip = usize::try_from(at.saturating_sub(2)).unwrap_or(usize::MAX);
            for entry in reading.entries.iter().skip(skip) {
                at = at.saturating_add(1);
                // What went since is no longer shown.
                let Ok((attributes, generation)) = tree.told(ino, entry, reading.is_old) else { continue };
                let name = OsStr::from_bytes(entry.name.as_bytes());
                if reply.add(attributes.ino, at, name, &TTL, &attributes, generation) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.work(move |tree| {
            tree.close_dir(fh);
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.work(move |tree| match tree.facts() {
            Ok(facts) => {
                let unit = u64::from(facts.block_size.max(1));
                let blocks = |bytes: u64| bytes.checked_div(unit).unwrap_or_default();
                let (all, free) = (blocks(facts.size), blocks(facts.free));
                reply.statfs(all, free, free, 0, 0, facts.block_size, 255, facts.block_size);
            }
            Err(e) => reply.error(e),
        });
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.done(reply, move |tree| tree.set_xattr(ino, &name, Some(&value), flags));
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = name.as_bytes().to_vec();
        self.work(move |tree| in_room(tree.xattr(ino, &name), size, reply));
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.work(move |tree| in_room(tree.xattr_names(ino), size, reply));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        self.done(reply, move |tree| tree.set_xattr(ino, &name, None, 0));
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.done(reply, move |tree| tree.allocate(ino, offset, length, mode));
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.work(move |tree| match tree.seek(ino, offset, whence) {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(e),
        });
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
