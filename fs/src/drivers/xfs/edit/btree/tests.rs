//! The tree against a model in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use racker_formats::block::{Disk, MemDevice};
use zerocopy::IntoBytes;

use super::super::super::inode::ForkKind;
use super::super::super::layout::RawSuperblock;
use super::super::super::superblock::{Superblock, tests::sample};
use super::super::super::units::{AgNo, InodeNo, NULL_AG_BLOCK};
use super::super::super::volume::Volume;
use super::super::owner::Owner;
use super::super::records::{ByPlace, MapKey, Mapped, Owners, PlaceKey, Run};
use super::*;

struct Blocks(Vec<u32>);

impl Pool for Blocks {
    fn take(&mut self) -> Result<u32> {
        Ok(self.0.pop().unwrap())
    }

    fn give(&mut self, block: u32) -> Result<()> {
        assert!(!self.0.contains(&block));
        self.0.push(block);
        Ok(())
    }
}

/// One group of 60,000 blocks of 1 KiB.
fn ground() -> Ground {
    let mut raw: RawSuperblock = sample();
    raw.sb_blocksize = 1024.into();
    raw.sb_blocklog = 10;
    raw.sb_inopblog = 1;
    raw.sb_inopblock = 2.into();
    raw.sb_agblocks = 60_000.into();
    raw.sb_agblklog = 16;
    raw.sb_agcount = 1.into();
    raw.sb_dblocks = 60_000.into();
    raw.sb_logstart = 50_000.into();
    let mut sector = [0; 512];
    sector[..264].copy_from_slice(raw.as_bytes());
    super::super::super::crc::stamp(&mut sector, core::mem::offset_of!(RawSuperblock, sb_crc)).unwrap();
    let sb = Superblock::parse(&sector, 60_000 << 10).unwrap();
    let disk = Disk::new(MemDevice::new(60_000 << 10));
    Ground::new(Arc::new(Volume { disk, sb, pending: Arc::default() }), AgNo(0)).unwrap()
}

fn empty<S: Shape>(ground: &Ground, root: u32) -> Tree<S> {
    let mut tree = Tree::new(ground, root, 1).unwrap();
    let node = Node::new(0, NULL_AG_BLOCK, NULL_AG_BLOCK, Entries::Records(Vec::new()));
    tree.nodes.insert(root, node);
    tree
}

/// Checks fill, order, keys and siblings of the whole tree; returns its records and the count of its blocks.
fn audit<S: Shape>(tree: &mut Tree<S>) -> (Vec<S::Record>, usize) {
    let (mut row, mut blocks, mut records) = (vec![tree.root], 0, Vec::new());
    for level in (0..tree.levels).rev() {
        let mut below = Vec::new();
        let mut left = NULL_AG_BLOCK;
        for (i, block) in row.iter().enumerate() {
            let (root, min, max) = (tree.root, tree.capacity.min(level), tree.capacity.max(level));
            let right = row.get(i + 1).copied().unwrap_or(NULL_AG_BLOCK);
            let node = tree.node(*block, level).unwrap();
            assert_eq!((node.left, node.right), (left, right));
            assert!(node.len() <= max && (*block == root || node.len() >= min), "{} at {level}", node.len());
            if level == 0 {
                records.extend_from_slice(node.leaf().unwrap());
            } else {
                let children = node.inner().unwrap().to_vec();
                for child in children {
                    let found = tree.node(child.block, level - 1).unwrap().summary(child.block).unwrap();
                    assert!(found.same_bytes::<S>(&child));
                    below.push(child.block);
                }
            }
            left = *block;
            blocks += 1;
        }
        row = below;
    }
    assert!(records.windows(2).all(|w| S::follows(&w[0], &w[1])));
    assert_eq!(usize::try_from(tree.count_blocks().unwrap()).unwrap(), blocks);
    (records, blocks)
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as u32) % sides
    }
}

#[test]
fn a_tree_keeps_its_shape_and_its_records_through_growth_and_decay() {
    let ground = ground();
    let mut pool = Blocks((100..9000).collect());
    let whole = pool.0.len();
    let mut tree = empty::<ByPlace>(&ground, 50);
    let mut model: BTreeMap<u32, Run> = BTreeMap::new();
    let mut dice = Dice(7);
    let mut highest = 0;
    for round in 0..80_000u32 {
        // Grows to thousands of records, decays to none, and so on.
        let growing = (round / 20_000) % 2 == 0;
        let start = 10 + dice.roll(16_000) * 3;
        if (dice.roll(10) < 8) == growing {
            model.entry(start).or_insert_with(|| {
                let run = Run { start, len: 1 };
                tree.insert(run, &mut pool).unwrap();
                run
            });
        } else if let Some((_, run)) = model.range(start..).next().map(|(k, v)| (*k, *v)) {
            if dice.roll(4) == 0 {
                let new = Run { start: run.start, len: 3 - run.len };
                tree.replace(&run, new).unwrap();
                model.insert(new.start, new);
            } else {
                tree.remove(&run, &mut pool).unwrap();
                model.remove(&run.start);
            }
        }
        highest = highest.max(tree.levels());
        if round % 1500 == 0 {
            let (records, blocks) = audit(&mut tree);
            assert!(records.iter().eq(model.values()));
            assert_eq!(blocks + pool.0.len(), whole + 1);
            tree.write_back().unwrap();
            tree.nodes.clear();
            let key = PlaceKey::at(start);
            assert_eq!(tree.at_or_after(key).unwrap(), model.range(start..).next().map(|r| *r.1));
            assert_eq!(tree.at_or_before(key).unwrap(), model.range(..=start).next_back().map(|r| *r.1));
            assert_eq!(tree.before(key).unwrap(), model.range(..start).next_back().map(|r| *r.1));
            assert_eq!(tree.after(key).unwrap(), model.range(start + 1..).next().map(|r| *r.1));
            assert_eq!(tree.last().unwrap(), model.values().next_back().copied());
        }
    }
    assert!(highest >= 3, "{highest}");
    while let Some(run) = tree.last().unwrap() {
        tree.remove(&run, &mut pool).unwrap();
    }
    assert_eq!((tree.levels(), pool.0.len()), (1, whole));
}

#[test]
fn ranges_find_all_that_overlap() {
    let ground = ground();
    let mut pool = Blocks((100..9000).collect());
    let mut tree = empty::<Owners>(&ground, 50);
    let mut model: Vec<Mapped> = Vec::new();
    let mut dice = Dice(3);
    for i in 0..6000u32 {
        if model.len() > 100 && dice.roll(3) == 0 {
            let gone = model.swap_remove(usize::try_from(dice.roll(model.len() as u32)).unwrap());
            tree.remove(&gone, &mut pool).unwrap();
        } else {
            let run =
                Run { start: dice.roll(15_000), len: 1 + dice.roll(if i % 50 == 0 { 4000 } else { 9 }) };
            let owner = Owner::content(
                InodeNo(u64::from(dice.roll(5000)) + 128),
                ForkKind::Data,
                u64::from(i) * 5000,
                false,
            );
            model.push(Mapped { run, owner });
            tree.insert(Mapped { run, owner }, &mut pool).unwrap();
        }
        if i % 200 == 0 {
            audit(&mut tree);
            tree.write_back().unwrap();
            tree.nodes.clear();
            let range = Run { start: dice.roll(15_000), len: 1 + dice.roll(30) };
            let mut found = Vec::new();
            tree.scan(MapKey::first(range.start), MapKey::last(range.last()), &mut |m| {
                found.push(m);
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            let mut expected: Vec<Mapped> =
                model.iter().filter(|m| m.run.intersect(range).is_some()).copied().collect();
            expected.sort_by_key(Owners::low);
            assert_eq!(found, expected);
        }
    }
    assert!(tree.levels() >= 3);
}

#[test]
fn contradictions_are_errors() {
    let ground = ground();
    let mut pool = Blocks((100..9000).collect());
    let mut tree = empty::<ByPlace>(&ground, 50);
    for i in 0..1000 {
        tree.insert(Run { start: 10 + i * 4, len: 2 }, &mut pool).unwrap();
    }
    for bad in [Run { start: 10, len: 2 }, Run { start: 11, len: 1 }, Run { start: 12, len: 3 }] {
        assert!(tree.insert(bad, &mut pool).is_err());
    }
    assert!(tree.remove(&Run { start: 10, len: 1 }, &mut pool).is_err());
    assert!(tree.remove(&Run { start: 9, len: 2 }, &mut pool).is_err());
    assert!(tree.replace(&Run { start: 10, len: 2 }, Run { start: 10, len: 4 }).is_err());
    tree.write_back().unwrap();
    let levels = tree.levels();
    let root = tree.root();
    for wrong in [levels - 1, levels + 1, 10, 0] {
        let found = Tree::<ByPlace>::new(&ground, root, wrong).and_then(|mut t| t.last());
        assert!(found.is_err());
    }
}

/// Every damaged tree block ends in an error or in an answer, never in a panic or an endless walk.
#[test]
fn damage_ends_in_errors() {
    let ground = ground();
    let mut pool = Blocks((100..9000).collect());
    let mut tree = empty::<Owners>(&ground, 50);
    let mut dice = Dice(11);
    for i in 0..3000 {
        let owner = Owner::content(InodeNo(128), ForkKind::Data, u64::from(i) * 9, false);
        tree.insert(Mapped { run: Run { start: 4 + i * 5, len: 4 }, owner }, &mut pool).unwrap();
    }
    tree.write_back().unwrap();
    let (root, levels) = (tree.root(), tree.levels());
    let blocks: Vec<u32> = tree.nodes.keys().copied().collect();
    let mut failed = 0;
    for _ in 0..3000 {
        let block = blocks[usize::try_from(dice.roll(blocks.len() as u32)).unwrap()];
        let at = ground.span(block).unwrap().start();
        let mut good = vec![0; 1024];
        ground.volume.disk.read_at(at, &mut good).unwrap();
        let mut bad = good.clone();
        for _ in 0..1 + dice.roll(3) {
            let sides = if dice.roll(2) == 0 { 64 } else { 1024 };
            let place = usize::try_from(dice.roll(sides)).unwrap();
            bad[place] =
                if dice.roll(2) == 0 { bad[place] ^ (1 << dice.roll(8)) } else { dice.roll(256) as u8 };
        }
        super::super::super::crc::stamp(&mut bad, 52).unwrap();
        ground.volume.disk.write_at(at, &bad).unwrap();
        let mut tree = Tree::<Owners>::new(&ground, root, levels).unwrap();
        let mut spare = Blocks(pool.0.clone());
        let mut run = || -> Result<()> {
            let mut seen = 0;
            tree.scan(MapKey::first(0), MapKey::last(u32::MAX), &mut |_| {
                seen += 1;
                Ok(ControlFlow::Continue(()))
            })?;
            assert!(seen < 4000);
            for i in 0..40 {
                if let Some(found) = tree.at_or_after(MapKey::first(i * 400))? {
                    tree.remove(&found, &mut spare)?;
                }
            }
            Ok(())
        };
        failed += u32::from(run().is_err());
        ground.volume.disk.write_at(at, &good).unwrap();
    }
    assert!(failed > 1000, "{failed}");
}
