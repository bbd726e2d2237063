//! Why a replay found no room, as data.

use serde::Serialize;
use stratalloc::OomExplanation;
use stratalloc::error::Error;

/// What the allocator says of a shortage.
#[derive(Debug, Clone, Serialize)]
pub struct Explained {
    /// The cause, by its name in the library.
    pub cause: String,
    /// What would have to be found in addition.
    pub missing_bytes: u64,
    /// What could be done: what suffices first, and of that the cheapest.
    pub advice: Vec<Advice>,
    /// All of it in words.
    pub text: String,
}

/// One thing that could be done.
#[derive(Debug, Clone, Serialize)]
pub struct Advice {
    /// What.
    pub what: String,
    /// How many bytes it frees or opens up.
    pub frees_bytes: u64,
    /// Whether the request would then succeed.
    pub suffices: bool,
}

impl Explained {
    pub(super) fn of(error: &Error) -> Option<Explained> {
        let Error::OutOfMemory(shortage) = error else { return None };
        let OomExplanation { cause, missing, advice, .. } = &shortage.explanation;
        let advice = advice.iter().map(|advice| Advice {
            what: advice.remedy.to_string(),
            frees_bytes: advice.frees,
            suffices: advice.suffices,
        });
        Some(Explained {
            cause: format!("{cause:?}"),
            missing_bytes: *missing,
            advice: advice.collect(),
            text: shortage.explanation.to_string(),
        })
    }
}
