//! Operations on the block core against a naive model: an arena against a list of ranges, a slab against a list of slots. The whole
//! structure is validated after every step.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use stratalloc::block::{Arena, ClassId, Growth, NodeId, Owner, Slab, State};
use stratalloc::units::{GRANULE, PAGE};

const SEGMENT: u64 = 64 * PAGE;
const OWNERS: u16 = 4;

#[derive(Debug, Arbitrary)]
enum ArenaOp {
    /// Take from an owner, or map memory where it has none.
    Take {
        owner: u8,
        granules: u16,
        alignment: u8,
        may_grow: bool,
    },
    Release {
        which: u8,
    },
    /// The clock of an owner passes so many of its stamps.
    Share {
        owner: u8,
        back: u8,
    },
    Absorb {
        owner: u8,
    },
    /// Unmap whole pages of a free node.
    Punch {
        owner: u8,
        which: u8,
    },
}

#[derive(Debug, Arbitrary)]
enum SlabOp {
    Take,
    Release(u8),
}

#[derive(Debug, Arbitrary)]
struct Input {
    class: u8,
    part: u8,
    slab: Vec<SlabOp>,
    arena: Vec<ArenaOp>,
}

/// The arena and what is known of it.
struct Model {
    arena: Arena,
    /// Mapped pages, by address: that is what holes are not.
    mapped: BTreeMap<u64, ()>,
    /// Used blocks, in the order taken: node, address, size, owner.
    used: Vec<(NodeId, u64, u64, Owner)>,
    epochs: [u64; OWNERS as usize + 1],
}

impl Model {
    fn new() -> Model {
        let mut arena = Arena::default();
        for home in 1..=OWNERS {
            arena.add_segment(2 * u64::from(home) * SEGMENT, SEGMENT, Owner(home));
        }
        Model { arena, mapped: BTreeMap::new(), used: Vec::new(), epochs: [1; OWNERS as usize + 1] }
    }

    fn apply(&mut self, op: &ArenaOp) {
        match *op {
            ArenaOp::Take { owner, granules, alignment, may_grow } => {
                let (owner, size) = (lane(owner), (u64::from(granules) + 1) * GRANULE);
                self.take(owner, size, GRANULE << (alignment % 13), may_grow);
            }
            ArenaOp::Release { which } if !self.used.is_empty() => {
                let (node, _, _, owner) = self.used.swap_remove(usize::from(which) % self.used.len());
                let epoch = &mut self.epochs[usize::from(owner.0)];
                *epoch += 1;
                self.arena.release(node, owner, *epoch);
            }
            ArenaOp::Share { owner, back } => {
                let owner = lane(owner);
                let passed = self.epochs[usize::from(owner.0)].saturating_sub(u64::from(back));
                self.arena.share(owner, passed);
                assert!(self.arena.free_nodes(owner).all(|(_, node)| node.stamp > passed));
            }
            ArenaOp::Absorb { owner } => {
                self.arena.absorb(lane(owner));
            }
            ArenaOp::Punch { owner, which } => self.punch(Owner(u16::from(owner) % (OWNERS + 1)), which),
            ArenaOp::Release { .. } => {}
        }
    }

    fn take(&mut self, owner: Owner, size: u64, alignment: u64, may_grow: bool) {
        let from = [owner, Owner::SHARED];
        let taken = from.into_iter().find_map(|owner| self.arena.take(owner, size, alignment));
        let node = match taken {
            Some(node) => node,
            None if may_grow => {
                let usable = |other: Owner| other == owner || other == Owner::SHARED;
                let Some(growth) = self.arena.plan_growth(owner, size, alignment, PAGE, usable) else { return };
                self.map(growth);
                let whole = self.arena.fill(owner, growth.at, growth.bytes, owner, 0, usable);
                self.arena.take_from(whole, size, alignment)
            }
            None => return,
        };
        let (addr, got) = (self.arena.node(node).addr, self.arena.node(node).size);
        assert_eq!((got, addr % alignment), (size, 0));
        assert_eq!(self.arena.node(node).state, State::Used);
        for &(_, other, other_size, _) in &self.used {
            assert!(addr + size <= other || other + other_size <= addr, "{addr:#x} overlaps {other:#x}");
        }
        let pages = addr / PAGE..(addr + size).div_ceil(PAGE);
        assert!(pages.into_iter().all(|page| self.mapped.contains_key(&(page * PAGE))), "{addr:#x} is not mapped");
        self.used.push((node, addr, size, owner));
    }

    fn map(&mut self, Growth { at, bytes, .. }: Growth) {
        assert!(bytes > 0 && bytes % PAGE == 0 && at % PAGE == 0);
        for page in (at..at + bytes).step_by(PAGE as usize) {
            assert!(self.mapped.insert(page, ()).is_none(), "{page:#x} is mapped twice");
        }
    }

    fn punch(&mut self, owner: Owner, which: u8) {
        let whole = |addr: u64, end: u64| (addr.next_multiple_of(PAGE), end / PAGE * PAGE);
        let nodes = self.arena.free_nodes(owner).map(|(id, node)| (id, whole(node.addr, node.end())));
        let nodes: Vec<(NodeId, (u64, u64))> = nodes.filter(|(_, (first, last))| first < last).collect();
        if nodes.is_empty() {
            return;
        }
        let (id, (first, last)) = nodes[usize::from(which) % nodes.len()];
        self.arena.punch(id, first, last - first);
        for page in (first..last).step_by(PAGE as usize) {
            assert!(self.mapped.remove(&page).is_some());
        }
    }

    fn check(&self) {
        self.arena.validate().unwrap();
        let used: u64 = self.used.iter().map(|(_, _, size, _)| size).sum();
        assert_eq!(self.arena.used_bytes(), used);
        assert_eq!(used + self.arena.free_bytes_total(), self.mapped.len() as u64 * PAGE, "bytes are conserved");
    }
}

fn lane(number: u8) -> Owner {
    Owner(1 + u16::from(number) % OWNERS)
}

fn slab(class: u8, part: u8, ops: &[SlabOp]) {
    let Some(class) = ClassId::from_index(usize::from(class) % ClassId::COUNT) else { return };
    // The low bits say how large it is, the others where in the page.
    let size = (Slab::least(class) << (part & 7)).min(PAGE);
    let mut slab = Slab::new(PAGE + u64::from(part >> 3) % (PAGE / size) * size, size, class);
    let mut free = vec![true; slab.places() as usize];
    let mut taken = Vec::new();
    for op in ops {
        match *op {
            SlabOp::Take => {
                let lowest = free.iter().position(|free| *free);
                assert_eq!(slab.take(), lowest.map(|slot| slot as u32));
                if let Some(slot) = lowest {
                    free[slot] = false;
                    taken.push(slot);
                }
            }
            SlabOp::Release(which) if !taken.is_empty() => {
                let slot = taken.swap_remove(usize::from(which) % taken.len());
                free[slot] = true;
                slab.release(slot as u32);
            }
            SlabOp::Release(_) => {}
        }
        slab.validate().unwrap();
        assert_eq!((slab.is_full(), slab.is_empty()), (taken.len() == slab.slots() as usize, taken.is_empty()));
    }
}

fuzz_target!(|input: Input| {
    slab(input.class, input.part, &input.slab);
    let mut model = Model::new();
    for op in &input.arena {
        model.apply(op);
        model.check();
    }
});
