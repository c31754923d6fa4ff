//! Who uses which block: two bits for each block of the groups at hand.

use super::super::edit::records::Run;
use super::notes::FINDINGS_MAX;

/// Bits of a block's state.
const BITS: u32 = 2;
/// Blocks of a word.
const PER_WORD: u32 = 32;
/// Bytes of the maps of all groups at hand: 2^30 blocks, 4 TiB with blocks of 4 KiB. Larger filesystems are gone
/// through in several rounds.
const MAP_BYTES_MAX: u64 = 256 << 20;
/// Edges of uses that are held, of 8 bytes each; with more the groups at hand become fewer, down to one.
const EDGES_MAX: usize = 16 << 20;
/// Edges of a group that are held before those at one place are added up.
const LOOSE_EDGES: usize = 1 << 16;

/// What a block was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nobody spoke of it.
    Unknown,
    /// Used by one.
    Used,
    /// The group counts who uses it.
    Counted,
    /// Free.
    Free,
}

impl State {
    const ALL: [Self; 4] = [Self::Unknown, Self::Used, Self::Counted, Self::Free];

    fn bits(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Used => 1,
            Self::Counted => 2,
            Self::Free => 3,
        }
    }

    /// What a block is called that is in this state.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unknown => "nobody's",
            Self::Used => "in use already",
            Self::Counted => "counted as shared",
            Self::Free => "free",
        }
    }
}

/// How a stretch of blocks is spoken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// Free.
    Free,
    /// Shared, by the tree that counts.
    Counted,
    /// Used, by nobody else.
    Own,
    /// Content of a file, which may be shared.
    Content,
}

/// The blocks of one group.
#[derive(Debug, Default)]
struct Map {
    words: Vec<u64>,
    blocks: u32,
    /// By how many the uses of shared blocks become more or fewer, where they do.
    edges: Vec<(u32, i32)>,
    /// How many of them were there when those at one place were last added up.
    settled: usize,
}

impl Map {
    fn new(blocks: u32) -> Self {
        let words = usize::try_from(blocks.div_ceil(PER_WORD)).unwrap_or(0);
        Self { words: vec![0; words], blocks, edges: Vec::new(), settled: 0 }
    }

    /// Blocks from `from` to `to` have one use more.
    fn add_use(&mut self, from: u32, to: u32) {
        self.edges.extend([(from, 1), (to, -1)]);
        if self.edges.len() >= self.settled.saturating_mul(2).saturating_add(LOOSE_EDGES) {
            self.settle();
        }
    }

    /// Puts edges in order, one at each place.
    fn settle(&mut self) {
        self.edges.sort_unstable();
        self.edges.dedup_by(|next, sum| {
            let same = next.0 == sum.0;
            if same {
                sum.1 = sum.1.saturating_add(next.1);
            }
            same
        });
        self.edges.retain(|(_, more)| *more != 0);
        self.settled = self.edges.len();
    }

    fn word(&self, block: u32) -> u64 {
        let at = usize::try_from(block.checked_div(PER_WORD).unwrap_or(0)).unwrap_or(usize::MAX);
        self.words.get(at).copied().unwrap_or(0)
    }

    fn state(&self, block: u32) -> State {
        let shift = block.checked_rem(PER_WORD).unwrap_or(0).saturating_mul(BITS);
        let bits = self.word(block).checked_shr(shift).unwrap_or(0) & 3;
        State::ALL.into_iter().find(|s| s.bits() == bits).unwrap_or(State::Unknown)
    }

    /// Where the stretch of blocks ends that are in the state of `from`, at `to` at the latest.
    fn stretch(&self, from: u32, to: u32) -> (u32, State) {
        let state = self.state(from);
        let pattern = state.bits().wrapping_mul(0x5555_5555_5555_5555);
        let mut at = from;
        while at < to {
            let within = at.checked_rem(PER_WORD).unwrap_or(0);
            let rest = PER_WORD.saturating_sub(within);
            let shift = within.saturating_mul(BITS);
            let differs = (self.word(at) ^ pattern).checked_shr(shift).unwrap_or(0);
            let same = (differs.trailing_zeros() >> 1).min(rest);
            at = at.saturating_add(same);
            if same < rest {
                break;
            }
        }
        (at.min(to), state)
    }

    fn fill(&mut self, from: u32, to: u32, state: State) {
        let pattern = state.bits().wrapping_mul(0x5555_5555_5555_5555);
        let mut at = from;
        while at < to {
            let within = at.checked_rem(PER_WORD).unwrap_or(0);
            let count = PER_WORD.saturating_sub(within).min(to.saturating_sub(at));
            let ones = u64::MAX.checked_shr(64u32.saturating_sub(count.saturating_mul(BITS))).unwrap_or(0);
            let mask = ones.checked_shl(within.saturating_mul(BITS)).unwrap_or(0);
            let place = usize::try_from(at.checked_div(PER_WORD).unwrap_or(0)).unwrap_or(usize::MAX);
            if let Some(word) = self.words.get_mut(place) {
                *word = *word & !mask | pattern & mask;
            }
            at = at.saturating_add(count);
        }
    }
}

/// The groups at hand.
#[derive(Debug)]
pub(super) struct Usage {
    from: u32,
    maps: Vec<Map>,
    /// Edges of all groups.
    edges: usize,
}

impl Usage {
    /// Maps of the groups from `from` on, as many as fit; `length` says how many blocks a group has.
    pub(super) fn new(from: u32, count: u32, length: impl Fn(u32) -> u32) -> Self {
        let (mut maps, mut bytes) = (Vec::new(), 0u64);
        for ag in from..count {
            let blocks = length(ag);
            bytes = bytes.saturating_add(u64::from(blocks) >> 2);
            if bytes > MAP_BYTES_MAX && !maps.is_empty() {
                break;
            }
            maps.push(Map::new(blocks));
        }
        Self { from, maps, edges: 0 }
    }

    /// The first group at hand.
    pub(super) fn first(&self) -> u32 {
        self.from
    }

    /// The group behind the last one at hand.
    pub(super) fn end(&self) -> u32 {
        self.from.saturating_add(u32::try_from(self.maps.len()).unwrap_or(u32::MAX))
    }

    fn place(&self, ag: u32) -> Option<usize> {
        usize::try_from(ag.checked_sub(self.from)?).ok()
    }

    fn map(&self, ag: u32) -> Option<&Map> {
        self.maps.get(self.place(ag)?)
    }

    /// Speaks of a stretch of blocks. Returns those of which something else was said before: no more of them than
    /// end a check.
    pub(super) fn claim(&mut self, ag: u32, run: Run, claim: Claim) -> Vec<(Run, State)> {
        let mut clashes = Vec::new();
        let Some(map) = self.place(ag).and_then(|i| self.maps.get_mut(i)) else { return clashes };
        let (end, before) = (run.end().min(map.blocks), map.edges.len());
        let mut at = run.start;
        while at < end && clashes.len() < FINDINGS_MAX {
            let (stop, state) = map.stretch(at, end);
            let next = match (claim, state) {
                (Claim::Free, State::Unknown) => Some(State::Free),
                (Claim::Counted, State::Unknown) => Some(State::Counted),
                (Claim::Own | Claim::Content, State::Unknown) => Some(State::Used),
                (Claim::Content, State::Counted) => {
                    map.add_use(at, stop);
                    None
                }
                _ => {
                    clashes.extend(Run::between(at, stop).map(|run| (run, state)));
                    None
                }
            };
            if let Some(next) = next {
                map.fill(at, stop, next);
            }
            at = stop;
        }
        self.edges = self.edges.saturating_add(map.edges.len()).saturating_sub(before);
        if self.edges > EDGES_MAX && self.maps.len() > 1 {
            self.shed();
        }
        clashes
    }

    /// Leaves the later half of the groups to another round, if adding up edges is not enough.
    fn shed(&mut self) {
        let count = |maps: &[Map]| maps.iter().map(|m| m.edges.len()).fold(0, usize::saturating_add);
        self.maps.iter_mut().for_each(Map::settle);
        self.edges = count(&self.maps);
        if self.edges > EDGES_MAX >> 1 {
            self.maps.truncate(self.maps.len().div_ceil(2));
            self.edges = count(&self.maps);
        }
    }

    /// Whether the group is at hand and `run` is all free, with nothing free on either side.
    pub(super) fn is_whole_free(&self, ag: u32, run: Run) -> Option<bool> {
        let map = self.map(ag)?;
        let (end, state) = map.stretch(run.start, map.blocks);
        let before = run.start.checked_sub(1).map(|b| map.state(b));
        Some(state == State::Free && end == run.end() && before != Some(State::Free))
    }

    /// The blocks of a group that nobody spoke of: no more stretches of them than end a check.
    pub(super) fn unknown(&self, ag: u32) -> Vec<Run> {
        let mut all = Vec::new();
        let Some(map) = self.map(ag) else { return all };
        let mut at = 0;
        while at < map.blocks && all.len() < FINDINGS_MAX {
            let (stop, state) = map.stretch(at, map.blocks);
            if state == State::Unknown {
                all.extend(Run::between(at, stop));
            }
            at = stop.max(at.saturating_add(1));
        }
        all
    }

    /// How often each stretch of shared blocks of a group was met, in order.
    pub(super) fn counts(&mut self, ag: u32) -> Vec<(Run, u32)> {
        let Some(map) = self.place(ag).and_then(|i| self.maps.get_mut(i)) else { return Vec::new() };
        map.settle();
        let (mut all, mut depth, mut since) = (Vec::new(), 0i32, 0u32);
        for (at, more) in std::mem::take(&mut map.edges) {
            let count = u32::try_from(depth).unwrap_or(0);
            all.extend(Run::between(since, at).filter(|_| count > 0).map(|run| (run, count)));
            since = at;
            depth = depth.saturating_add(more);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_somebodys_once() {
        let mut usage = Usage::new(0, 2, |_| 100);
        let run = |start, len| Run { start, len };
        assert_eq!(usage.claim(1, run(0, 33), Claim::Own), []);
        assert_eq!(usage.claim(1, run(40, 50), Claim::Free), []);
        assert_eq!(
            usage.claim(1, run(30, 20), Claim::Own),
            [(run(30, 3), State::Used), (run(40, 10), State::Free)]
        );
        assert_eq!(usage.unknown(1), [run(90, 10)]);
        assert_eq!(usage.is_whole_free(1, run(40, 50)), Some(true));
        assert_eq!(usage.is_whole_free(1, run(41, 49)), Some(false));
        assert_eq!(usage.is_whole_free(1, run(40, 49)), Some(false));
        assert_eq!(usage.is_whole_free(2, run(40, 50)), None);
        assert_eq!(usage.claim(7, run(0, 9), Claim::Own), []);
    }

    #[test]
    fn uses_of_shared_blocks_are_counted() {
        let mut usage = Usage::new(5, 6, |_| 100);
        let run = |start, len| Run { start, len };
        assert_eq!(usage.claim(5, run(10, 30), Claim::Counted), []);
        for (start, len) in [(10, 30), (10, 10), (15, 10), (0, 12)] {
            assert_eq!(usage.claim(5, run(start, len), Claim::Content), []);
        }
        let expected = [(run(10, 2), 3), (run(12, 3), 2), (run(15, 5), 3), (run(20, 5), 2), (run(25, 15), 1)];
        assert_eq!(usage.counts(5), expected);
        assert_eq!(usage.claim(5, run(39, 1), Claim::Own), [(run(39, 1), State::Counted)]);
    }
}
