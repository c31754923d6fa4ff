//! A filesystem in memory, for tests: as honest or as hostile as the test wants it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use racker_formats::error::{Common, Result};

use crate::filesystem::*;

/// One node with everything that a test may want to say about it.
#[derive(Clone, Debug)]
pub(crate) struct MemNode {
    pub(crate) stat: Stat,
    pub(crate) entries: Vec<(Vec<u8>, u64)>,
    pub(crate) data: BTreeMap<u64, Vec<u8>>,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The filesystem; node 0 is the root.
#[derive(Clone, Debug)]
pub(crate) struct MemFs {
    pub(crate) nodes: Vec<MemNode>,
}

pub(crate) const TIME: Time = Time { sec: 1_600_000_000, nsec: 123_456_789 };

impl MemFs {
    pub(crate) fn new() -> Self {
        let mut fs = Self { nodes: Vec::new() };
        fs.node(NodeKind::Dir, 0o755);
        fs
    }

    pub(crate) fn node(&mut self, kind: NodeKind, mode: u32) -> u64 {
        let stat = Stat {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            allocated: 0,
            links: 0,
            atime: TIME,
            mtime: TIME,
            ctime: TIME,
            crtime: None,
            rdev: (0, 0),
            flags: Flags::empty(),
            project: 0,
            generation: 0,
        };
        self.nodes.push(MemNode {
            stat,
            entries: Vec::new(),
            data: BTreeMap::new(),
            target: Vec::new(),
            xattrs: Vec::new(),
        });
        self.nodes.len() as u64 - 1
    }

    /// Makes `name` in `dir` lead to `node`.
    pub(crate) fn link(&mut self, dir: u64, name: &[u8], node: u64) {
        self.nodes[dir as usize].entries.push((name.to_vec(), node));
        self.nodes[node as usize].stat.links += 1;
    }

    pub(crate) fn dir(&mut self, parent: u64, name: &[u8]) -> u64 {
        let node = self.node(NodeKind::Dir, 0o755);
        self.link(parent, name, node);
        node
    }

    pub(crate) fn file(&mut self, parent: u64, name: &[u8], data: &[u8]) -> u64 {
        let node = self.node(NodeKind::File, 0o644);
        self.link(parent, name, node);
        self.at(node).stat.size = data.len() as u64;
        if !data.is_empty() {
            self.at(node).data.insert(0, data.to_vec());
        }
        node
    }

    pub(crate) fn symlink(&mut self, parent: u64, name: &[u8], target: &[u8]) -> u64 {
        let node = self.node(NodeKind::Link, 0o777);
        self.link(parent, name, node);
        self.at(node).target = target.to_vec();
        self.at(node).stat.size = target.len() as u64;
        node
    }

    pub(crate) fn at(&mut self, node: u64) -> &mut MemNode {
        &mut self.nodes[node as usize]
    }
}

impl Filesystem for MemFs {
    fn facts(&self) -> Result<FsFacts> {
        Ok(FsFacts { kind: "mem", ..FsFacts::default() })
    }

    fn root(&self) -> NodeId {
        NodeId(0)
    }

    fn stat(&self, node: NodeId) -> Result<Stat> {
        self.nodes.get(node.0 as usize).map(|n| n.stat).ok_or_else(|| Common::Index(node.0).into())
    }

    fn lookup(&self, dir: NodeId, name: &Name) -> Result<Option<NodeId>> {
        let entries = &self.nodes[dir.0 as usize].entries;
        Ok(entries.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, n)| NodeId(*n)))
    }

    fn read_dir(&self, dir: NodeId, visit: &mut Visit<'_, DirEntry>) -> Result<()> {
        for (name, node) in &self.nodes[dir.0 as usize].entries {
            let entry = DirEntry { name: Name::new(name)?, node: NodeId(*node), kind: None };
            if visit(entry)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    fn read(&self, file: NodeId, at: u64, buf: &mut [u8]) -> Result<usize> {
        let node = &self.nodes[file.0 as usize];
        let len = node.stat.size.saturating_sub(at).min(buf.len() as u64) as usize;
        buf[..len].fill(0);
        for (start, data) in &node.data {
            for (i, byte) in data.iter().enumerate() {
                if let Some(to) = (start + i as u64).checked_sub(at)
                    && (to as usize) < len
                {
                    buf[to as usize] = *byte;
                }
            }
        }
        Ok(len)
    }

    fn extents(&self, file: NodeId, visit: &mut Visit<'_, Extent>) -> Result<()> {
        let node = &self.nodes[file.0 as usize];
        let mut at = 0;
        let mut out = |at: u64, len: u64, kind| -> Result<ControlFlow<()>> {
            if len == 0 { Ok(ControlFlow::Continue(())) } else { visit(Extent { at, len, kind }) }
        };
        for (start, data) in &node.data {
            if out(at, start - at, ExtentKind::Hole)?.is_break()
                || out(*start, data.len() as u64, ExtentKind::Data(4096))?.is_break()
            {
                return Ok(());
            }
            at = start + data.len() as u64;
        }
        out(at, node.stat.size - at, ExtentKind::Unwritten(8192)).map(|_| ())
    }

    fn read_link(&self, link: NodeId) -> Result<Vec<u8>> {
        Ok(self.nodes[link.0 as usize].target.clone())
    }

    fn xattrs(&self, node: NodeId, visit: &mut VisitXattr<'_>) -> Result<()> {
        for (name, value) in &self.nodes[node.0 as usize].xattrs {
            if visit((name, value))?.is_break() {
                break;
            }
        }
        Ok(())
    }
}
