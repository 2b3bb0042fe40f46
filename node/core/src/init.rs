//! How a cluster begins: each member durably accepts the first layout that it is given and refuses any other, and
//! serving starts when *all* of them have accepted.
//!
//! A member that has accepted tells the others over its links until it knows of all. Nothing here times out into
//! a decision: a member that cannot be reached is never taken for one that has not been initialised.

use std::collections::BTreeSet;

use crate::effect::InitRefusal;
use crate::id::{Actor, Epoch, NodeId};
use crate::layout::Layout;
use crate::message::Message;
use crate::mutant::{Mutant, is_on};

/// What a node knows of the layout it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    Uninitialised,
    /// Durably accepted; `accepted_by` holds the members known to have accepted too, this one among them.
    Accepted {
        layout: Layout,
        digest: u64,
        accepted_by: BTreeSet<NodeId>,
    },
    /// All members have accepted.
    Decided {
        layout: Layout,
        digest: u64,
    },
}

/// How a proposed first layout is to be answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proposal {
    /// New: make it durable, then take it up.
    Accept,
    /// The very same was accepted before.
    AlreadyAccepted,
    Refuse(InitRefusal),
}

impl Membership {
    pub fn accepted(layout: Layout, me: NodeId) -> Self {
        Self::Accepted { digest: layout.digest(), layout, accepted_by: BTreeSet::from([me]) }
    }

    pub fn decided(layout: Layout) -> Self {
        Self::Decided { digest: layout.digest(), layout }
    }

    pub fn layout(&self) -> Option<&Layout> {
        match self {
            Self::Uninitialised => None,
            Self::Accepted { layout, .. } | Self::Decided { layout, .. } => Some(layout),
        }
    }

    /// The layout under which requests are served: only once all members have accepted it.
    pub fn serving(&self) -> Option<&Layout> {
        match self {
            Self::Decided { layout, .. } => Some(layout),
            Self::Uninitialised | Self::Accepted { .. } => None,
        }
    }

    pub fn judge(&self, proposed: &Layout, me: NodeId, actor: Actor) -> Proposal {
        match self {
            Self::Accepted { layout, digest, .. } | Self::Decided { layout, digest } => {
                if is_on(Mutant::SecondInitIsAccepted) && *digest != proposed.digest() {
                    return Proposal::Accept;
                }
                if *digest == proposed.digest() {
                    Proposal::AlreadyAccepted
                } else {
                    Proposal::Refuse(InitRefusal::OtherCluster(layout.cluster))
                }
            }
            Self::Uninitialised => match check_first(proposed, me, actor) {
                Ok(()) => Proposal::Accept,
                Err(refusal) => Proposal::Refuse(refusal),
            },
        }
    }

    /// Notes that a member has accepted, or knows that all have; true once all have.
    pub fn note_accepted(&mut self, member: NodeId, of_digest: u64, decided: bool) -> bool {
        let Self::Accepted { layout, digest, accepted_by } = self else {
            return false;
        };
        if *digest == of_digest && layout.member(member).is_some() {
            accepted_by.insert(member);
            if decided {
                // Others may be gone by now; that all had accepted is a fact, and this member has it on disk.
                accepted_by.extend(layout.members.iter().map(|member| member.node));
            }
        }
        is_on(Mutant::ServesBeforeAllHaveAccepted)
            || layout.members.iter().all(|member| {
                let is_excused = member.is_lost && !is_on(Mutant::TheLostAreWaitedFor);
                is_excused || accepted_by.contains(&member.node)
            })
    }

    /// What to say to a member: that we have accepted, asking for the same unless we know already.
    pub fn announcement(&self, to: NodeId) -> Option<Message> {
        match self {
            Self::Uninitialised => None,
            Self::Accepted { digest, accepted_by, .. } => Some(Message::InitAccepted {
                digest: *digest,
                reply_wanted: !accepted_by.contains(&to),
                decided: false,
            }),
            Self::Decided { digest, .. } => {
                Some(Message::InitAccepted { digest: *digest, reply_wanted: false, decided: true })
            }
        }
    }
}

fn check_first(proposed: &Layout, me: NodeId, actor: Actor) -> Result<(), InitRefusal> {
    proposed.validate()?;
    if proposed.epoch != Epoch(1) {
        return Err(InitRefusal::NotFirst(proposed.epoch));
    }
    match proposed.member(me) {
        Some(member) if member.actor == actor => Ok(()),
        _ => Err(InitRefusal::NoMember(me)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::ClusterId;
    use crate::layout::tests::{first, member};

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn layout(cluster: u8) -> Layout {
        let layout = first(vec![member(1), member(2), member(3)], 3).unwrap();
        Layout { cluster: ClusterId([cluster; 16]), ..layout }
    }

    #[test]
    fn the_first_layout_seen_is_accepted_and_any_other_refused() {
        let uninitialised = Membership::Uninitialised;
        assert_eq!(uninitialised.judge(&layout(7), node(1), Actor(1)), Proposal::Accept);
        let refused = InitRefusal::OtherCluster(ClusterId([7; 16]));
        for membership in [Membership::accepted(layout(7), node(1)), Membership::decided(layout(7))] {
            assert_eq!(membership.judge(&layout(7), node(1), Actor(1)), Proposal::AlreadyAccepted);
            assert_eq!(membership.judge(&layout(8), node(1), Actor(1)), Proposal::Refuse(refused.clone()));
        }
    }

    #[test]
    fn a_layout_that_does_not_fit_this_node_is_refused() {
        let judge = |layout: &Layout, me, actor| Membership::Uninitialised.judge(layout, me, actor);
        assert_eq!(judge(&layout(7), node(4), Actor(4)), Proposal::Refuse(InitRefusal::NoMember(node(4))));
        assert_eq!(judge(&layout(7), node(1), Actor(9)), Proposal::Refuse(InitRefusal::NoMember(node(1))));
        let second = Layout { epoch: Epoch(2), ..layout(7) };
        assert_eq!(judge(&second, node(1), Actor(1)), Proposal::Refuse(InitRefusal::NotFirst(Epoch(2))));
        let empty = Layout { members: vec![], ..layout(7) };
        assert!(matches!(judge(&empty, node(1), Actor(1)), Proposal::Refuse(InitRefusal::Invalid(_))));
    }

    #[test]
    fn all_members_have_to_accept_before_anything_is_served() {
        let mut membership = Membership::accepted(layout(7), node(1));
        let digest = layout(7).digest();
        assert!(membership.serving().is_none());
        assert!(!membership.note_accepted(node(2), digest, false));
        assert!(!membership.note_accepted(node(3), digest + 1, true), "another layout");
        assert!(!membership.note_accepted(node(9), digest, true), "no member");
        assert!(membership.clone().note_accepted(node(2), digest, true), "one that knows of all");
        assert!(membership.note_accepted(node(3), digest, false));
        assert_eq!(
            membership.announcement(node(2)),
            Some(Message::InitAccepted { digest, reply_wanted: false, decided: false })
        );
    }
}
