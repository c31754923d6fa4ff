//! Huffman codes with a longest length, in the canonical form of RFC 1951, 3.2.2.

/// Symbols of the largest alphabet, and inner nodes above them.
const NODES: usize = 2 * 288;
/// Longest code of all alphabets.
const LENGTH_MAX: usize = 15;

/// How one symbol is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Code {
    /// First bit lowest.
    pub(super) bits: u16,
    /// 0 for a symbol that does not occur.
    pub(super) len: u8,
}

/// The codes for symbols that occur so often, none longer than `longest` bits. At least two symbols have one, so
/// that every decoder takes the code for complete.
pub(super) fn codes<const N: usize>(frequencies: &[u32; N], longest: usize) -> [Code; N] {
    // Frequency above symbol: sorting brings the rarest first.
    let mut order = [0u64; N];
    let mut used = 0usize;
    let mut add = |symbol: usize, frequency: u32| {
        if let Some(slot) = order.get_mut(used) {
            *slot = u64::from(frequency) << 16 | u64::try_from(symbol).unwrap_or_default();
        }
        used = used.saturating_add(1);
    };
    for (symbol, frequency) in frequencies.iter().enumerate().filter(|(_, f)| **f > 0) {
        add(symbol, *frequency);
    }
    let idle = frequencies.iter().enumerate().filter(|(_, f)| **f == 0);
    let missing = 2usize.saturating_sub(frequencies.iter().filter(|f| **f > 0).count());
    idle.take(missing).for_each(|(symbol, _)| add(symbol, 1));
    let order = order.get_mut(..used).unwrap_or_default();
    order.sort_unstable();
    let counts = limited(depths(order), longest.min(LENGTH_MAX));
    let lengths = counts.iter().enumerate().rev().flat_map(|(len, n)| std::iter::repeat_n(len, *n));
    let mut codes = [Code::default(); N];
    for (entry, len) in order.iter().zip(lengths) {
        let symbol = usize::try_from(entry & 0xffff).unwrap_or_default();
        if let Some(code) = codes.get_mut(symbol) {
            code.len = u8::try_from(len).unwrap_or_default();
        }
    }
    number(&mut codes, &counts);
    codes
}

/// How many leaves of the best tree lie how deep; all that lie too deep to count are counted together.
fn depths(order: &[u64]) -> [usize; LENGTH_MAX + 2] {
    let leaves = order.len();
    let mut weights = [0u64; NODES];
    let mut parents = [0usize; NODES];
    for (weight, entry) in weights.iter_mut().zip(order) {
        *weight = entry >> 16;
    }
    let end = leaves.saturating_mul(2).saturating_sub(1);
    // Leaves are sorted, and inner nodes come in order by themselves.
    let (mut leaf, mut inner) = (0usize, leaves);
    for node in leaves..end {
        let mut sum = 0u64;
        for _ in 0..2 {
            let weight = |at: usize| weights.get(at).copied().unwrap_or_default();
            let is_leaf = leaf < leaves && (inner >= node || weight(leaf) <= weight(inner));
            let child = if is_leaf { leaf } else { inner };
            if is_leaf {
                leaf = leaf.saturating_add(1)
            } else {
                inner = inner.saturating_add(1)
            }
            sum = sum.saturating_add(weight(child));
            if let Some(parent) = parents.get_mut(child) {
                *parent = node;
            }
        }
        if let Some(weight) = weights.get_mut(node) {
            *weight = sum;
        }
    }
    let mut depth = [0usize; NODES];
    let mut counts = [0usize; LENGTH_MAX + 2];
    for node in (0..end.saturating_sub(1)).rev() {
        let parent = parents.get(node).and_then(|p| depth.get(*p)).copied().unwrap_or_default();
        let own = parent.saturating_add(1);
        if let Some(slot) = depth.get_mut(node) {
            *slot = own;
        }
        if node < leaves
            && let Some(count) = counts.get_mut(own.min(LENGTH_MAX.saturating_add(1)))
        {
            *count = count.saturating_add(1);
        }
    }
    counts
}

/// Raises what lies deeper than `longest`, and lowers others for it until the tree is a tree again.
fn limited(mut counts: [usize; LENGTH_MAX + 2], longest: usize) -> [usize; LENGTH_MAX + 2] {
    let deep = counts.iter().skip(longest.saturating_add(1)).sum::<usize>();
    counts.iter_mut().skip(longest.saturating_add(1)).for_each(|n| *n = 0);
    let (above, rest) = counts.split_at_mut(longest);
    let Some(bottom) = rest.first_mut() else { return counts };
    *bottom = bottom.saturating_add(deep);
    // In units of the deepest level a tree takes 2^longest.
    let full = 1usize << longest;
    let mut taken = above
        .iter()
        .enumerate()
        .skip(1)
        .fold(*bottom, |sum, (len, n)| sum.saturating_add(n << longest.saturating_sub(len)));
    while taken > full {
        // A leaf of the deepest level moves beside one that gives half of its room.
        let Some(len) = above.iter().rposition(|n| *n > 0) else { break };
        *bottom = bottom.saturating_sub(1);
        if let Some(n) = above.get_mut(len) {
            *n = n.saturating_sub(1);
        }
        match above.get_mut(len.saturating_add(1)) {
            Some(n) => *n = n.saturating_add(2),
            None => *bottom = bottom.saturating_add(2),
        }
        taken = taken.saturating_sub(1);
    }
    counts
}

/// Numbers the codes: by length, and by symbol among equals.
fn number(codes: &mut [Code], counts: &[usize; LENGTH_MAX + 2]) {
    let mut next = [0u16; LENGTH_MAX + 2];
    let mut code = 0usize;
    for (first, count) in next.iter_mut().zip(counts) {
        *first = u16::try_from(code).unwrap_or_default();
        code = code.saturating_add(*count) << 1;
    }
    for code in codes.iter_mut().filter(|c| c.len > 0) {
        let Some(slot) = next.get_mut(usize::from(code.len)) else { continue };
        code.bits = slot.reverse_bits().wrapping_shr(16u32.wrapping_sub(u32::from(code.len)));
        *slot = slot.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the codes fill the tree to the last leaf.
    fn is_full(codes: &[Code]) -> bool {
        codes.iter().filter(|c| c.len > 0).map(|c| 1u32 << (15 - c.len)).sum::<u32>() == 1 << 15
    }

    #[test]
    fn the_example_of_the_rfc() {
        // Lengths 3, 3, 3, 3, 3, 2, 4, 4 have the codes 010, 011, 100, 101, 110, 00, 1110, 1111.
        let got = codes(&[4, 4, 4, 4, 4, 9, 2, 2], 15);
        assert_eq!(got.map(|c| c.len), [3, 3, 3, 3, 3, 2, 4, 4]);
        let turned = got.map(|c| c.bits.reverse_bits() >> (16 - c.len));
        assert_eq!(turned, [0b010, 0b011, 0b100, 0b101, 0b110, 0b00, 0b1110, 0b1111]);
    }

    #[test]
    fn no_code_is_too_long_and_the_tree_is_full() {
        let mut fibonacci = [1u32; 40];
        for i in 2..40 {
            fibonacci[i] = fibonacci[i - 1] + fibonacci[i - 2];
        }
        for longest in [7, 15] {
            let got = codes(&fibonacci, longest);
            assert!(is_full(&got) && got.iter().all(|c| usize::from(c.len) <= longest));
            assert!(got[0].len >= got[39].len);
        }
    }

    #[test]
    fn few_symbols_still_have_a_code() {
        for frequencies in [[0, 0, 0], [0, 7, 0], [1, 7, 0]] {
            let got = codes(&frequencies, 15);
            assert!(is_full(&got));
            assert!(frequencies.iter().zip(&got).all(|(f, c)| *f == 0 || c.len == 1));
        }
    }
}
