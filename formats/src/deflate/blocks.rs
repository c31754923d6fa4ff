//! Cuts symbols into blocks and writes them with codes that fit (RFC 1951, 3.2.7).

use super::bits::Bits;
use super::huffman::{Code, codes};
use super::symbol::{DISTANCES, END, INDICES, LITERALS, NO_DISTANCE, SAID, Symbol, distance_of};

/// Symbols that stay together.
const STRETCH: usize = 4096;
/// What a further block costs, in 256ths of a bit: its codes.
const BLOCK_COST: u64 = 560 << 8;
/// Longest codes: of symbols, and of code lengths.
const LONGEST: usize = 15;
const LONGEST_LENGTH: usize = 7;
/// Symbols of the alphabet of code lengths, and the order in which their own lengths are written.
const LENGTHS: usize = 19;
const ORDER: [usize; LENGTHS] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
/// Distance symbols can be told apart by five bits.
const DISTANCE_SLOTS: usize = 32;

/// Writes `symbols`; the stream ends there if `is_last`. `None` if there is not so much room.
pub(super) fn write(out: &mut Bits, symbols: &[Symbol], is_last: bool) -> Option<()> {
    let mut rest = symbols;
    loop {
        let (block, counts) = first_block(rest);
        rest = rest.get(block.len()..).unwrap_or_default();
        let ends = rest.is_empty();
        write_block(out, block, &counts, is_last && ends)?;
        if ends {
            return Some(());
        }
    }
}

/// The symbols from the first on that are alike enough for one block.
fn first_block(symbols: &[Symbol]) -> (&[Symbol], Counts) {
    let mut stretches = symbols.chunks(STRETCH);
    let mut block = Counts::of(stretches.next().unwrap_or_default());
    let mut len = STRETCH.min(symbols.len());
    let mut cost = None;
    for stretch in stretches {
        let more = Counts::of(stretch);
        let both = block.and(&more);
        let apart = cost.unwrap_or_else(|| block.cost()).saturating_add(more.cost());
        let together = both.cost();
        if together > apart.saturating_add(BLOCK_COST) {
            break;
        }
        (block, cost, len) = (both, Some(together), len.saturating_add(stretch.len()));
    }
    (symbols.get(..len).unwrap_or(symbols), block)
}

/// How often each symbol occurs.
#[derive(Clone, Copy, Debug)]
struct Counts {
    literals: [u32; LITERALS],
    distances: [u32; DISTANCE_SLOTS],
}

impl Counts {
    fn of(symbols: &[Symbol]) -> Self {
        let mut counts = Self { literals: [0; LITERALS], distances: [0; DISTANCE_SLOTS] };
        for symbol in symbols {
            let said = SAID.get(symbol.index()).map_or(0, |s| usize::from(s.symbol));
            if let Some(n) = counts.literals.get_mut(said) {
                *n = n.wrapping_add(1);
            }
            if let Some(n) = counts.distances.get_mut(symbol.distance_symbol()) {
                *n = n.wrapping_add(1);
            }
        }
        counts
    }

    fn and(&self, other: &Self) -> Self {
        let mut sum = *self;
        sum.literals.iter_mut().zip(&other.literals).for_each(|(a, b)| *a = a.saturating_add(*b));
        sum.distances.iter_mut().zip(&other.distances).for_each(|(a, b)| *a = a.saturating_add(*b));
        sum
    }

    /// What the symbols take with a perfect code, in 256ths of a bit; bits beside the codes are not counted.
    fn cost(&self) -> u64 {
        let distances = self.distances.get(..DISTANCES).unwrap_or_default();
        entropy(&self.literals).saturating_add(entropy(distances))
    }
}

/// The sum of each count times the logarithm of its share.
fn entropy(counts: &[u32]) -> u64 {
    let (mut total, mut sum) = (0u64, 0u64);
    for count in counts.iter().filter(|c| **c > 0) {
        total = total.saturating_add(u64::from(*count));
        sum = sum.saturating_add(u64::from(*count).saturating_mul(log2(*count)));
    }
    let whole = u32::try_from(total).unwrap_or(u32::MAX);
    total.saturating_mul(log2(whole)).saturating_sub(sum)
}

/// The logarithm in 256ths, a straight line between powers of two; of 0 it is 0.
fn log2(n: u32) -> u64 {
    let shift = (n | 1).leading_zeros();
    let whole = u64::from(31u32.saturating_sub(shift)) << 8;
    // A straight line is 0.086 too low in the middle, which a parabola makes good.
    let part = u64::from((n.wrapping_shl(shift) >> 23) & 0xff);
    let bend = part.saturating_mul(256u64.saturating_sub(part)).saturating_mul(88) >> 16;
    if n == 0 { 0 } else { whole.saturating_add(part).saturating_add(bend) }
}

/// Everything that is written before the symbols of a block.
struct Head {
    literals: [Code; LITERALS],
    distances: [Code; DISTANCE_SLOTS],
    /// Code lengths, run-length coded: symbol, further bits, number of those.
    runs: Vec<(u8, u8, u8)>,
    lengths: [Code; LENGTHS],
    literal_codes: usize,
    distance_codes: usize,
    length_codes: usize,
}

impl Head {
    fn new(counts: &Counts) -> Self {
        let mut frequencies = counts.literals;
        if let Some(end) = frequencies.get_mut(END) {
            *end = 1;
        }
        let literals = codes(&frequencies, LONGEST);
        let mut frequencies = [0u32; DISTANCES];
        frequencies.iter_mut().zip(&counts.distances).for_each(|(to, from)| *to = *from);
        let mut distances = [Code::default(); DISTANCE_SLOTS];
        let some = codes(&frequencies, LONGEST);
        distances.iter_mut().zip(some).for_each(|(to, from)| *to = from);
        let used =
            |codes: &[Code]| codes.iter().rposition(|c| c.len > 0).map_or(0, |at| at.saturating_add(1));
        let (literal_codes, distance_codes) = (used(&literals).max(257), used(&distances).max(1));
        let all = literals.iter().take(literal_codes).chain(distances.iter().take(distance_codes));
        let runs = run_lengths(&all.map(|c| c.len).collect::<Vec<_>>());
        let mut frequencies = [0u32; LENGTHS];
        for (symbol, _, _) in &runs {
            if let Some(n) = frequencies.get_mut(usize::from(*symbol)) {
                *n = n.saturating_add(1);
            }
        }
        let lengths = codes(&frequencies, LONGEST_LENGTH);
        let has_code = |at: &usize| lengths.get(*at).is_some_and(|c| c.len > 0);
        let length_codes = ORDER.iter().rposition(has_code).map_or(0, |at| at.saturating_add(1)).max(4);
        Self { literals, distances, runs, lengths, literal_codes, distance_codes, length_codes }
    }

    /// Bits that it takes.
    fn bits(&self) -> u64 {
        let fixed = u64::try_from(self.length_codes).unwrap_or_default().saturating_mul(3).saturating_add(17);
        self.runs.iter().fold(fixed, |sum, (symbol, _, extra_bits)| {
            let len = self.lengths.get(usize::from(*symbol)).map_or(0, |c| c.len);
            sum.saturating_add(u64::from(len)).saturating_add(u64::from(*extra_bits))
        })
    }

    fn write(&self, out: &mut Bits, is_last: bool) {
        out.put(u64::from(is_last), 1);
        // Dynamic codes.
        out.put(2, 2);
        let less = |n: usize, by: usize| u64::try_from(n.saturating_sub(by)).unwrap_or_default();
        out.put(less(self.literal_codes, 257), 5);
        out.put(less(self.distance_codes, 1), 5);
        out.put(less(self.length_codes, 4), 4);
        for at in ORDER.iter().take(self.length_codes) {
            out.put(self.lengths.get(*at).map_or(0, |c| u64::from(c.len)), 3);
        }
        for (symbol, extra, extra_bits) in &self.runs {
            let code = self.lengths.get(usize::from(*symbol)).copied().unwrap_or_default();
            out.put(u64::from(code.bits), u32::from(code.len));
            out.put(u64::from(*extra), u32::from(*extra_bits));
        }
    }
}

/// Code lengths as they are written: 16 repeats the last one, 17 and 18 are zeroes.
fn run_lengths(lengths: &[u8]) -> Vec<(u8, u8, u8)> {
    let mut runs = Vec::with_capacity(lengths.len());
    let small = |n: usize| u8::try_from(n).unwrap_or_default();
    for same in lengths.chunk_by(|a, b| a == b) {
        let value = same.first().copied().unwrap_or_default();
        let mut left = same.len();
        if value != 0 {
            runs.push((value, 0, 0));
            left = left.saturating_sub(1);
        }
        while left > 0 {
            let (symbol, most, least, bits) = match (value, left) {
                (0, 11..) => (18, 138, 11, 7),
                (0, 3..) => (17, 10, 3, 3),
                (1.., 3..) => (16, 6, 3, 2),
                _ => (value, 1, 1, 0),
            };
            let n = left.min(most);
            runs.push((symbol, small(n.saturating_sub(least)), bits));
            left = left.saturating_sub(n);
        }
    }
    runs
}

/// What is written for an index or for a distance symbol.
#[derive(Clone, Copy, Default)]
struct Pattern {
    bits: u64,
    count: u32,
    /// Distances only: where the bits for the distance itself go, and the distance they count from.
    shift: u32,
    base: u64,
}

fn write_block(out: &mut Bits, symbols: &[Symbol], counts: &Counts, is_last: bool) -> Option<()> {
    let head = Head::new(counts);
    let mut literals = [Pattern::default(); INDICES];
    for (pattern, said) in literals.iter_mut().zip(&SAID) {
        let code = head.literals.get(usize::from(said.symbol)).copied().unwrap_or_default();
        let len = u32::from(code.len);
        pattern.bits = u64::from(code.bits) | u64::from(said.extra).wrapping_shl(len);
        pattern.count = len.wrapping_add(u32::from(said.extra_bits));
    }
    let mut distances = [Pattern::default(); DISTANCE_SLOTS];
    for (symbol, (pattern, code)) in distances.iter_mut().zip(&head.distances).enumerate() {
        let (base, extra) = distance_of(symbol);
        let len = u32::from(code.len);
        *pattern = Pattern { bits: u64::from(code.bits), count: len.wrapping_add(extra), shift: len, base };
    }
    out.reserve(head.bits().saturating_add(symbol_bits(&head, counts)))?;
    head.write(out, is_last);
    for symbol in symbols {
        let first = literals.get(symbol.index()).copied().unwrap_or_default();
        let second = distances.get(symbol.distance_symbol()).copied().unwrap_or_default();
        let more = symbol.distance().wrapping_sub(second.base).wrapping_shl(second.shift) | second.bits;
        out.put(first.bits | more.wrapping_shl(first.count), first.count.wrapping_add(second.count));
    }
    let end = head.literals.get(END).copied().unwrap_or_default();
    out.put(u64::from(end.bits), u32::from(end.len));
    Some(())
}

/// Bits that the symbols of a block and its end take.
fn symbol_bits(head: &Head, counts: &Counts) -> u64 {
    let mut bits = head.literals.get(END).map_or(0, |c| u64::from(c.len));
    let mut add = |n: u32, len: u64| bits = bits.saturating_add(u64::from(n).saturating_mul(len));
    for (n, code) in counts.literals.iter().zip(&head.literals) {
        add(*n, code.len.into());
    }
    for said in SAID.iter().filter(|said| said.extra == 0 && said.extra_bits > 0) {
        let n = counts.literals.get(usize::from(said.symbol)).copied().unwrap_or_default();
        add(n, said.extra_bits.into());
    }
    for (symbol, (n, code)) in counts.distances.iter().zip(&head.distances).take(NO_DISTANCE).enumerate() {
        let (_, extra) = distance_of(symbol);
        add(*n, u64::from(code.len).saturating_add(extra.into()));
    }
    bits
}
