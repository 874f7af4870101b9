//! The operator's choice: which endpoint sets are steered, and to which egress.

use crate::list::{Category, EndpointSet};

/// What is done with the packets of an endpoint set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// The ordinary path.
    Pass,
    /// The egress with this index.
    Steer(u8),
}

/// The default policy: Optimize is steered to one egress, everything else passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The index of the egress for Optimize.
    pub egress: u8,
}

impl Policy {
    /// What the policy does with an endpoint set.
    pub fn action(&self, set: &EndpointSet) -> Action {
        match set.category {
            Category::Optimize => Action::Steer(self.egress),
            _ => Action::Pass,
        }
    }
}
