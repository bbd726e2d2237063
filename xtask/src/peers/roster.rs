//! Which allocators there are.

use super::options::{ASKED_MORE, Options};
use super::questions::Answers;

/// Where an allocator comes from: which program runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// This project, through its C library.
    Stratalloc,
    /// PyTorch, through the libraries of its wheel.
    Torch,
    /// RMM, from the headers of its wheel.
    Rmm,
    /// Allocators of host memory, which know neither streams nor a driver: the least that book-keeping costs.
    Floor,
}

/// What an allocator is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Everything.
    All,
    /// All about memory and driver time, nothing about its own time: settings of this allocator.
    Memory,
    /// What it does where other streams use its blocks.
    Waits,
    /// What it reserves with memory to spare, and what that costs: a point of the Pareto plot.
    Curve,
}

/// One allocator with its settings.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) family: Family,
    /// The program's `--setting`.
    pub(super) setting: String,
    /// The value of the family's environment variable.
    pub(super) conf: String,
    /// Whether it reserves what it is told, not what it needs.
    pub(super) is_told: bool,
    /// What it is asked.
    pub(super) reach: Reach,
    /// Whether a replay takes minutes rather than a second.
    pub(super) is_slow: bool,
}

impl Peer {
    fn new(name: &str, family: Family, setting: &str, conf: &str) -> Peer {
        Peer {
            name: name.to_string(),
            family,
            setting: setting.to_string(),
            conf: conf.to_string(),
            is_told: false,
            reach: Reach::All,
            is_slow: false,
        }
    }

    /// Whether it is asked about how little memory it gets by with.
    pub(super) fn is_tight(&self) -> bool {
        matches!(self.reach, Reach::All | Reach::Memory)
    }

    /// Whether it has a device beneath it.
    pub(super) fn has_device(&self) -> bool {
        self.family != Family::Floor
    }
}

/// This allocator with a setting. Those that are points of the curve by default are just that; what somebody asks for is asked all.
fn variant(setting: &str, options: &Options) -> Peer {
    let reach = match ASKED_MORE.iter().find(|(more, _)| *more == setting) {
        Some((_, true)) => Reach::Memory,
        Some((_, false)) => Reach::Waits,
        None if options.has_usual_settings() => Reach::Curve,
        None => Reach::Memory,
    };
    Peer { reach, ..Peer::new(&format!("stratalloc {setting}"), Family::Stratalloc, "", setting) }
}

/// All of them, this allocator first.
pub(super) fn all(options: &Options) -> Vec<Peer> {
    let mut peers = vec![Peer::new("stratalloc", Family::Stratalloc, "", "")];
    for setting in &options.settings {
        peers.push(variant(setting, options));
    }
    peers.push(Peer::new("native", Family::Torch, "", ""));
    peers.push(Peer::new("expandable", Family::Torch, "", "expandable_segments:True"));
    if !options.quick {
        let (roundup, split) = ("roundup_power2_divisions:8", "max_split_size_mb:512");
        peers.push(Peer::new("native roundup", Family::Torch, "", roundup));
        peers.push(Peer::new("native max-split", Family::Torch, "", split));
    }
    peers.push(Peer::new("rmm pool", Family::Rmm, "pool-grow", ""));
    peers.push(Peer { is_told: true, ..Peer::new("rmm pool-one", Family::Rmm, "pool-one", "") });
    if !options.quick {
        let arena = Peer::new("rmm arena", Family::Rmm, "arena", "");
        peers.push(Peer { is_told: true, is_slow: true, ..arena });
    }
    for floor in ["mimalloc", "offset-allocator"] {
        peers.push(Peer { is_told: true, ..Peer::new(floor, Family::Floor, floor, "") });
    }
    peers
}

/// These, and those that an earlier run asked under settings of its own.
pub(super) fn with_earlier(mut peers: Vec<Peer>, answers: &Answers) -> Vec<Peer> {
    for answer in &answers.all {
        if let Some(setting) = answer.peer.strip_prefix("stratalloc ")
            && !peers.iter().any(|peer| peer.name == answer.peer)
        {
            let peer = Peer::new(&answer.peer, Family::Stratalloc, "", setting);
            peers.push(Peer { reach: Reach::Curve, ..peer });
        }
    }
    peers
}

/// Those that the options ask for.
pub(super) fn chosen(options: &Options) -> Result<Vec<Peer>, String> {
    let all = all(options);
    for name in &options.peers {
        if !all.iter().any(|peer| peer.name == *name) {
            let names: Vec<&str> = all.iter().map(|peer| peer.name.as_str()).collect();
            return Err(format!("there is no peer '{name}': {}", names.join(", ")));
        }
    }
    let is_chosen = |peer: &Peer| options.peers.is_empty() || options.peers.contains(&peer.name);
    Ok(all.into_iter().filter(is_chosen).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_chosen_by_name() {
        let chosen_by = |words: &[&str]| chosen(&Options::parse(words).unwrap());
        let names =
            |words: &[&str]| -> Vec<String> { chosen_by(words).unwrap().into_iter().map(|peer| peer.name).collect() };
        assert_eq!(names(&["--peers", "expandable,stratalloc"]), ["stratalloc", "expandable"]);
        assert!(names(&["--settings", "thrifty:true"]).contains(&"stratalloc thrifty:true".to_string()));
        assert!(chosen_by(&["--peers", "jemalloc"]).is_err());
    }
}
