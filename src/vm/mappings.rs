//! Every mapping by its address: for each reservation a table with a place for each unit of it, of which the host gives memory where chunks
//! are. Chunks are many, and are looked up, mapped and unmapped in runs: a tree costs several times as much for that.

use super::ChunkId;

/// One reservation.
#[derive(Debug)]
struct Table {
    start: u64,
    end: u64,
    /// By unit: the number of the chunk that begins there, plus 1.
    chunks: Vec<u32>,
    /// A bit for each unit: whether a chunk begins there.
    begins: Vec<u64>,
    /// By unit: how many of the chunk that was last mapped there lie before it, and after it.
    places: Vec<[u32; 2]>,
}

impl Table {
    /// The first unit from `from` on, below `to`, where a chunk begins.
    fn next(&self, from: usize, to: usize) -> Option<usize> {
        let mut word = from / 64;
        let mut bits = self.begins.get(word)? & (!0 << (from % 64));
        while bits == 0 {
            word += 1;
            if word * 64 >= to {
                return None;
            }
            bits = self.begins[word];
        }
        Some(word * 64 + bits.trailing_zeros() as usize).filter(|&unit| unit < to)
    }

    /// The last unit below `to`, from `from` on, where a chunk begins.
    fn last(&self, from: usize, to: usize) -> Option<usize> {
        let mut word = to.checked_sub(1)? / 64;
        let mut bits = self.begins[word] & (!0 >> (63 - (to - 1) % 64));
        while bits == 0 {
            if word * 64 <= from {
                return None;
            }
            word -= 1;
            bits = self.begins[word];
        }
        Some(word * 64 + 63 - bits.leading_zeros() as usize).filter(|&unit| unit >= from)
    }

    /// The ends of the chunk that is mapped around a unit, in units.
    #[inline]
    fn chunk_around(&self, unit: usize) -> (usize, usize) {
        let [before, after] = self.places[unit];
        (unit - before as usize, unit + after as usize + 1)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Mappings {
    /// As a power of two.
    unit: u32,
    /// By address.
    tables: Vec<Table>,
    count: usize,
}

impl Mappings {
    /// No reservation yet; chunks begin at multiples of `unit`, a power of two.
    pub(super) fn new(unit: u64) -> Mappings {
        Mappings { unit: unit.trailing_zeros(), tables: Vec::new(), count: 0 }
    }

    /// Adds a reservation.
    pub(super) fn add(&mut self, start: u64, size: u64) {
        let units = (size >> self.unit) as usize;
        let (begins, places) = (vec![0; units.div_ceil(64)], vec![[0; 2]; units]);
        let table = Table { start, end: start + size, chunks: vec![0; units], begins, places };
        let at = self.tables.partition_point(|other| other.start < start);
        self.tables.insert(at, table);
    }

    /// Takes a reservation out in which nothing is mapped.
    pub(super) fn take(&mut self, start: u64) {
        self.tables.retain(|table| table.start != start);
    }

    /// The reservation that contains an address.
    #[inline]
    fn table(&self, addr: u64) -> Option<usize> {
        let at = self.tables.partition_point(|table| table.start <= addr).checked_sub(1)?;
        (addr < self.tables[at].end).then_some(at)
    }

    #[inline]
    fn place(&self, addr: u64) -> Option<(usize, usize)> {
        let at = self.table(addr)?;
        let offset = addr - self.tables[at].start;
        offset.is_multiple_of(1 << self.unit).then_some((at, (offset >> self.unit) as usize))
    }

    /// The chunk whose mapping begins at an address.
    pub(super) fn get(&self, addr: u64) -> Option<ChunkId> {
        let (table, unit) = self.place(addr)?;
        self.tables[table].chunks[unit].checked_sub(1).map(ChunkId)
    }

    /// A chunk of so many bytes is mapped at an address of a reservation: another one than was there, of the same size, if one was.
    pub(super) fn insert(&mut self, addr: u64, chunk: ChunkId, size: u64) {
        let (table, unit) = self.place(addr).expect("mappings lie in reservations");
        let table = &mut self.tables[table];
        let units = (size >> self.unit) as u32;
        self.count += usize::from(table.chunks[unit] == 0);
        table.chunks[unit] = chunk.0 + 1;
        table.begins[unit / 64] |= 1 << (unit % 64);
        let places = &mut table.places[unit..unit + units as usize];
        (0..units).zip(places).for_each(|(before, place)| *place = [before, units - 1 - before]);
    }

    /// Nothing begins at this address any more.
    pub(super) fn remove(&mut self, addr: u64) {
        let Some((table, unit)) = self.place(addr) else { return };
        let table = &mut self.tables[table];
        self.count -= usize::from(table.chunks[unit] != 0);
        table.chunks[unit] = 0;
        table.begins[unit / 64] &= !(1 << (unit % 64));
    }

    /// The bytes of the chunks that lie whole in a mapped range of a reservation, beside a smaller range at its lower end, and beside one at its
    /// upper end.
    #[inline]
    pub(super) fn whole_beside(&self, from: u64, to: u64, size: u64) -> [u64; 2] {
        let Some(table) = self.table(from).map(|at| &self.tables[at]) else { return [to - from - size; 2] };
        let (from, to) = (from - table.start, to - table.start);
        let chunk_around = |offset: u64| {
            let (begin, end) = table.chunk_around((offset >> self.unit) as usize);
            ((begin as u64) << self.unit, (end as u64) << self.unit)
        };
        // The first border from an address on, and the last up to one.
        let above = |offset: u64| {
            let (begin, end) = chunk_around(offset);
            if begin == offset { begin } else { end }
        };
        let below = |offset: u64| {
            let (begin, end) = chunk_around(offset - 1);
            if end == offset { end } else { begin }
        };
        [below(to).saturating_sub(above(from + size)), below(to - size).saturating_sub(above(from))]
    }

    /// The mappings that begin from one address on, below another, in ascending order.
    pub(super) fn range(&self, from: u64, to: u64) -> impl DoubleEndedIterator<Item = (u64, ChunkId)> + '_ {
        let tables = &self.tables[self.tables.partition_point(|table| table.end <= from)..];
        let tables = &tables[..tables.partition_point(|table| table.start < to)];
        tables.iter().flat_map(move |table| {
            let offset = |addr: u64| addr.clamp(table.start, table.end) - table.start;
            let unit = |offset: u64| offset.div_ceil(1 << self.unit) as usize;
            Begun { table, shift: self.unit, from: unit(offset(from)), to: unit(offset(to)) }
        })
    }

    /// All mappings, in ascending order.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, ChunkId)> + '_ {
        self.range(0, u64::MAX)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

/// The mappings that begin in some units of a reservation.
struct Begun<'a> {
    table: &'a Table,
    shift: u32,
    from: usize,
    to: usize,
}

impl Begun<'_> {
    fn at(&self, unit: usize) -> (u64, ChunkId) {
        (self.table.start + ((unit as u64) << self.shift), ChunkId(self.table.chunks[unit] - 1))
    }
}

impl Iterator for Begun<'_> {
    type Item = (u64, ChunkId);

    #[inline]
    fn next(&mut self) -> Option<(u64, ChunkId)> {
        let unit = self.table.next(self.from, self.to)?;
        self.from = unit + 1;
        Some(self.at(unit))
    }
}

impl DoubleEndedIterator for Begun<'_> {
    fn next_back(&mut self) -> Option<(u64, ChunkId)> {
        let unit = self.table.last(self.from, self.to)?;
        self.to = unit;
        Some(self.at(unit))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const UNIT: u64 = 1 << 21;

    #[test]
    fn reservations_come_and_go() {
        let mut mappings = Mappings::new(UNIT);
        mappings.add(640 * UNIT, 2 * UNIT);
        mappings.add(0, 130 * UNIT);
        mappings.insert(641 * UNIT, ChunkId(7), UNIT);
        assert_eq!(mappings.get(641 * UNIT), Some(ChunkId(7)));
        assert_eq!(
            (mappings.get(640 * UNIT), mappings.get(641 * UNIT + 512), mappings.get(642 * UNIT)),
            (None, None, None)
        );
        mappings.remove(641 * UNIT);
        mappings.take(640 * UNIT);
        assert_eq!((mappings.len(), mappings.iter().count(), mappings.get(641 * UNIT)), (0, 0, None));
    }

    proptest! {
        /// As one counts them, chunk by chunk.
        #[test]
        fn whole_chunks_are_those_beside(
            sizes in prop::collection::vec(1u64..100, 1..12),
            gone in any::<prop::sample::Index>(),
            ranges in prop::collection::vec(prop::array::uniform3(any::<prop::sample::Index>()), 8),
        ) {
            let end = sizes.iter().sum::<u64>() * UNIT;
            let mut mappings = Mappings::new(UNIT);
            mappings.add(0, end);
            let mut chunks = Vec::new();
            for (number, units) in (0..).zip(sizes) {
                let at = chunks.last().map_or(0, |&(at, size)| at + size);
                chunks.push((at, units * UNIT));
                mappings.insert(at, ChunkId(number), units * UNIT);
            }
            // One is mapped once more where it was, and in two halves instead.
            let (at, size) = chunks[gone.index(chunks.len())];
            mappings.insert(at, ChunkId(99), size);
            if size > UNIT {
                let first = size / UNIT / 2 * UNIT;
                mappings.remove(at);
                mappings.insert(at, ChunkId(100), first);
                mappings.insert(at + first, ChunkId(101), size - first);
                chunks.retain(|&(other, _)| other != at);
                chunks.extend([(at, first), (at + first, size - first)]);
            }
            for points in ranges {
                // Quarters of units, too.
                let mut points = points.map(|index| index.index((end / UNIT * 4) as usize) as u64 * UNIT / 4);
                points.sort_unstable();
                let [from, middle, to] = points;
                let (size, to) = (middle - from, to.max(middle + 512));
                let whole = |from: u64, to: u64| -> u64 {
                    let whole = chunks.iter().filter(|&&(at, size)| from <= at && at + size <= to);
                    whole.map(|&(_, size)| size).sum()
                };
                prop_assert_eq!(mappings.whole_beside(from, to, size), [whole(middle, to), whole(from, to - size)]);
            }
        }

        /// As a tree does it.
        #[test]
        fn ranges_are_those_of_a_tree(
            steps in prop::collection::vec((0u64..200, any::<bool>()), 0..120),
            ranges in prop::collection::vec((0u64..210 * 4, 0u64..210 * 4), 8),
        ) {
            // Two reservations side by side, a gap, and a third.
            let mut mappings = Mappings::new(UNIT);
            for (start, units) in [(70, 60), (0, 70), (140, 60)] {
                mappings.add(start * UNIT, units * UNIT);
            }
            let mut tree = BTreeMap::new();
            for (number, (unit, insert)) in (0..).zip(steps) {
                let addr = unit * UNIT;
                if (130..140).contains(&unit) {
                    prop_assert_eq!(mappings.get(addr), None);
                } else if insert {
                    mappings.insert(addr, ChunkId(number), UNIT);
                    tree.insert(addr, ChunkId(number));
                } else {
                    mappings.remove(addr);
                    tree.remove(&addr);
                }
                prop_assert_eq!(mappings.get(addr), tree.get(&addr).copied());
            }
            prop_assert_eq!(mappings.len(), tree.len());
            for (from, to) in ranges {
                // Quarters of units, too.
                let (from, to) = (from * UNIT / 4, to * UNIT / 4);
                let expected: Vec<_> = tree.range(from..to.max(from)).map(|(&addr, &id)| (addr, id)).collect();
                prop_assert_eq!(mappings.range(from, to).collect::<Vec<_>>(), expected.clone());
                let backwards: Vec<_> = expected.into_iter().rev().collect();
                prop_assert_eq!(mappings.range(from, to).rev().collect::<Vec<_>>(), backwards);
            }
        }
    }
}
