//! Which allocators there are.

use super::options::Options;

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
    /// Whether it is one of `--settings`: asked about memory and driver time, not about its own time.
    pub(super) is_variant: bool,
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
            is_variant: false,
            is_slow: false,
        }
    }

    /// Whether it has a device beneath it.
    pub(super) fn has_device(&self) -> bool {
        self.family != Family::Floor
    }
}

/// All of them, this allocator first.
fn all(options: &Options) -> Vec<Peer> {
    let mut peers = vec![Peer::new("stratalloc", Family::Stratalloc, "", "")];
    for setting in &options.settings {
        let name = format!("stratalloc {setting}");
        peers.push(Peer { is_variant: true, ..Peer::new(&name, Family::Stratalloc, "", setting) });
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
