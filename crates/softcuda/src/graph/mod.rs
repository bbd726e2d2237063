//! Graphs: nodes of work with an order among them, executable graphs, and what they keep alive.

pub(crate) mod add;
pub(crate) mod edit;
pub(crate) mod exec;
pub(crate) mod inspect;
pub(crate) mod memory;
pub(crate) mod user_objects;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::abi::codes::{Code, Res};
use crate::abi::pointers::In;
use crate::abi::structs::EdgeData;
use crate::handles::{Kind, Table};
use crate::stream::work::Op;
use user_objects::Held;

/// An order: work comes after a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    /// The node that comes before.
    pub(crate) node: usize,
    pub(crate) data: EdgeData,
}

impl Edge {
    pub(crate) fn plain(node: usize) -> Edge {
        Edge { node, data: EdgeData::default() }
    }
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) handle: usize,
    pub(crate) graph: usize,
    pub(crate) op: Mutex<Op>,
    /// The node of which this is a copy.
    pub(crate) original: Option<usize>,
}

/// A graph.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) handle: usize,
    pub(crate) parts: Mutex<Parts>,
}

/// Nodes in the order in which they were added, what each comes after, and what the graph keeps.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) after: HashMap<usize, Vec<Edge>>,
    pub(crate) held: Vec<Arc<Held>>,
    pub(crate) conditionals: u64,
}

/// A piece of an executable graph.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) node: usize,
    pub(crate) op: Op,
    pub(crate) enabled: bool,
}

static GRAPHS: Table<Graph> = Table::new(Kind::Graph);
static NODES: Table<Node> = Table::new(Kind::Node);

pub(crate) fn by_handle(handle: usize) -> Res<Arc<Graph>> {
    GRAPHS.get(handle).map_err(|_| Code::INVALID_VALUE)
}

pub(crate) fn node_by_handle(handle: usize) -> Res<Arc<Node>> {
    NODES.get(handle).map_err(|_| Code::INVALID_VALUE)
}

/// The edges that a caller names, all of nodes of one graph.
pub(crate) fn edges_from(graph: &Graph, nodes: In<usize>, data: In<EdgeData>, count: usize) -> Res<Vec<Edge>> {
    let nodes = nodes.all(count)?;
    let data = if data.is_null() { vec![EdgeData::default(); count] } else { data.all(count)? };
    let mut edges: Vec<Edge> = Vec::new();
    for (&node, &data) in nodes.iter().zip(&data) {
        if node_by_handle(node)?.graph != graph.handle || edges.iter().any(|edge| edge.node == node) {
            return Err(Code::INVALID_VALUE);
        }
        edges.push(Edge { node, data });
    }
    Ok(edges)
}

impl Graph {
    /// An empty graph.
    pub(crate) fn make() -> Res<Arc<Graph>> {
        GRAPHS.insert(|handle| Graph { handle, parts: Mutex::default() })
    }

    /// Adds a node. Gives its handle.
    pub(crate) fn add(&self, op: Op, after: Vec<Edge>) -> Res<usize> {
        self.add_copy(op, after, None)
    }

    fn add_copy(&self, op: Op, after: Vec<Edge>, original: Option<usize>) -> Res<usize> {
        let node = NODES.insert(|handle| Node { handle, graph: self.handle, op: Mutex::new(op), original })?;
        let mut parts = self.parts.lock();
        parts.after.insert(node.handle, after);
        parts.nodes.push(Arc::clone(&node));
        Ok(node.handle)
    }

    /// Forgets the graph and its nodes. Executable graphs made from it live on.
    pub(crate) fn destroy(&self) {
        // Whoever is first does it.
        let _ = GRAPHS.remove(self.handle);
        let parts = std::mem::take(&mut *self.parts.lock());
        for node in &parts.nodes {
            let _ = NODES.remove(node.handle);
        }
    }

    /// The nodes given, and all that come before them.
    pub(crate) fn ancestors(&self, nodes: impl IntoIterator<Item = usize>) -> HashSet<usize> {
        let parts = self.parts.lock();
        let mut found = HashSet::new();
        let mut open: Vec<usize> = nodes.into_iter().collect();
        while let Some(node) = open.pop() {
            if found.insert(node) {
                open.extend(parts.after.get(&node).into_iter().flatten().map(|edge| edge.node));
            }
        }
        found
    }

    /// All work in an order that its edges permit: as it was added, as far as they do. Fails where they form a circle.
    pub(crate) fn steps(&self) -> Res<Vec<Step>> {
        let parts = self.parts.lock();
        let mut waiting: HashMap<usize, usize> = HashMap::new();
        let mut later: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, node) in parts.nodes.iter().enumerate() {
            let after = parts.after.get(&node.handle).map_or(&[][..], Vec::as_slice);
            waiting.insert(at, after.len());
            after.iter().for_each(|edge| later.entry(edge.node).or_default().push(at));
        }
        let mut ready: std::collections::BTreeSet<usize> =
            waiting.iter().filter(|(_, count)| **count == 0).map(|(at, _)| *at).collect();
        let mut steps = Vec::with_capacity(parts.nodes.len());
        while let Some(at) = ready.pop_first() {
            let node = &parts.nodes[at];
            steps.push(Step { node: node.handle, op: node.op.lock().clone(), enabled: true });
            for &next in later.get(&node.handle).into_iter().flatten() {
                if let Some(count) = waiting.get_mut(&next) {
                    *count -= 1;
                    if *count == 0 {
                        ready.insert(next);
                    }
                }
            }
        }
        if steps.len() == parts.nodes.len() { Ok(steps) } else { Err(Code::INVALID_VALUE) }
    }

    /// A copy with nodes of its own.
    pub(crate) fn copy(&self) -> Res<Arc<Graph>> {
        let copy = Graph::make()?;
        let parts = self.parts.lock();
        let mut names: HashMap<usize, usize> = HashMap::new();
        for node in &parts.nodes {
            let op = node.op.lock().clone();
            names.insert(node.handle, copy.add_copy(op, Vec::new(), Some(node.handle))?);
        }
        let mut copied = copy.parts.lock();
        for (node, after) in &parts.after {
            let after = after.iter().filter_map(|edge| Some(Edge { node: *names.get(&edge.node)?, ..*edge })).collect();
            if let Some(&name) = names.get(node) {
                copied.after.insert(name, after);
            }
        }
        copied.held.clone_from(&parts.held);
        copied.conditionals = parts.conditionals;
        drop(copied);
        Ok(copy)
    }
}
