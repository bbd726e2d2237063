//! Which pages of slabs can share memory: those whose live slots are at different places.
//!
//! This is first fit by decreasing occupancy, with a bound on the tries of each page. Pages with equal occupancy are tried in an order that
//! depends on the seed alone: one that depended on their age or address would try pages first whose live slots are at the same places,
//! since slots are handed out lowest first.

use crate::pool::{MeshPage, MeshSet};

/// Other pages that a page is tried with, at most.
const PROBES: usize = 4096;

/// Sets of pages that can share one page's memory. The first of each set keeps its memory: one that is shared already, or else the fullest.
pub(crate) fn mesh(pages: &[MeshPage], seed: u64) -> Vec<MeshSet> {
    let mut order: Vec<usize> = (0..pages.len()).collect();
    order.sort_by_cached_key(|&page| {
        let MeshPage { class, members, .. } = pages[page];
        (class, members == 1, u32::MAX - live(&pages[page]), scatter(seed ^ page as u64))
    });
    let mut sets = Vec::new();
    for class in order.chunk_by(|&a, &b| pages[a].class == pages[b].class) {
        let mut open: Vec<Open> = Vec::new();
        for &page in class {
            let MeshPage { ref taken, members, members_max, slots, .. } = pages[page];
            let live = live(&pages[page]);
            let fits = |set: &&mut Open| {
                set.members < members_max
                    && set.live + live <= slots
                    && set.taken.iter().zip(taken).all(|(a, b)| a & b == 0)
            };
            // What is shared already stays where it is: moving it would take a call for each of its addresses.
            match open.iter_mut().take(PROBES).find(fits).filter(|_| members == 1) {
                Some(set) => {
                    set.pages.push(page);
                    set.members += 1;
                    set.live += live;
                    set.taken.iter_mut().zip(taken).for_each(|(all, taken)| *all |= taken);
                }
                None => open.push(Open { pages: vec![page], members, live, taken: taken.clone() }),
            }
            // Those that are out of reach would only be looked at again and again.
            if open.len() > 2 * PROBES {
                sets.extend(open.drain(..PROBES).map(|set| set.pages));
            }
        }
        sets.extend(open.into_iter().map(|set| set.pages));
    }
    sets.retain(|set| set.len() > 1);
    sets
}

/// A set that may still grow.
struct Open {
    pages: MeshSet,
    members: usize,
    live: u32,
    taken: Box<[u64]>,
}

fn live(page: &MeshPage) -> u32 {
    page.taken.iter().map(|word| word.count_ones()).sum()
}

/// SplitMix64's mixing of bits.
fn scatter(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pages of `slots` slots, each of which is live in `percent` of 100 cases.
    fn random(pages: usize, slots: u32, percent: u64, seed: u64) -> Vec<MeshPage> {
        let live = |page: usize, slot: u32| scatter(seed ^ ((page as u64) << 32 | u64::from(slot))) % 100 < percent;
        let page = |page: usize| {
            let mut taken = vec![0u64; slots.div_ceil(64) as usize].into_boxed_slice();
            (0..slots).filter(|&slot| live(page, slot)).for_each(|slot| taken[slot as usize / 64] |= 1 << (slot % 64));
            MeshPage { class: 0, members: 1, members_max: 16, slots, taken }
        };
        (0..pages).map(page).collect()
    }

    fn released(sets: &[MeshSet]) -> usize {
        sets.iter().map(|set| set.len() - 1).sum()
    }

    fn check(pages: &[MeshPage], sets: &[MeshSet]) {
        let mut seen = vec![false; pages.len()];
        for set in sets {
            let mut all = vec![0u64; pages[set[0]].taken.len()];
            for &page in set {
                assert!(!std::mem::replace(&mut seen[page], true), "page {page} is in two sets");
                assert_eq!(pages[page].class, pages[set[0]].class);
                for (all, taken) in all.iter_mut().zip(&pages[page].taken) {
                    assert_eq!(*all & taken, 0, "live slots of page {page} are at the places of others");
                    *all |= taken;
                }
            }
            assert!(set[1..].iter().all(|&page| pages[page].members == 1), "what is shared already stays");
            assert!(pages[set[0]].members + set.len() - 1 <= pages[set[0]].members_max);
        }
    }

    #[test]
    fn sets_are_disjoint_whatever_the_pages() {
        for seed in 0..200 {
            let slots = [32, 37, 64, 128, 1024][seed as usize % 5];
            let mut pages = random(60, slots, [2, 10, 25, 50][seed as usize % 4], seed);
            for (index, page) in pages.iter_mut().enumerate() {
                page.class = index % 3;
                (page.members, page.members_max) = (1 + index % 4, 6);
            }
            let sets = mesh(&pages, seed);
            check(&pages, &sets);
            assert_eq!(sets, mesh(&pages, seed), "the same seed gives the same sets");
        }
    }

    #[test]
    fn a_quarter_live_at_random_leaves_half_of_the_pages_where_slots_are_few() {
        // 64 KiB and 32 KiB slots. DESIGN.md says why smaller ones are hopeless at this occupancy.
        for (slots, pages, least) in [(32, 256, 46), (64, 2000, 45)] {
            let pages = random(pages, slots, 25, 7);
            let sets = mesh(&pages, 1);
            check(&pages, &sets);
            let percent = 100 * released(&sets) / pages.len();
            assert!(percent >= least, "{slots} slots: {percent} % of the pages released");
        }
    }

    #[test]
    fn few_live_slots_let_many_pages_share_one() {
        let mut pages = random(500, 4096, 0, 3);
        pages.iter_mut().for_each(|page| page.members_max = 500);
        assert_eq!(released(&mesh(&pages, 1)), 499, "pages with nothing live fit anywhere");
        let pages = random(500, 64, 3, 3);
        let sets = mesh(&pages, 1);
        check(&pages, &sets);
        assert!(released(&sets) > 400, "{}", released(&sets));
    }

    #[test]
    fn full_pages_and_pages_alike_stay_apart() {
        assert_eq!(mesh(&random(50, 64, 100, 1), 1), Vec::<MeshSet>::new());
        let alike: Vec<MeshPage> = (0..50).map(|_| random(1, 64, 25, 9).remove(0)).collect();
        assert_eq!(mesh(&alike, 1), Vec::<MeshSet>::new());
        assert_eq!(mesh(&[], 1), Vec::<MeshSet>::new());
    }
}
