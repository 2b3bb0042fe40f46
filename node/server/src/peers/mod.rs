//! Streams to the other members: one for each pair, dialled by the node with the lower UUID.
//!
//! The core judges each hello before anything else of a link is read. What cannot be sent closes the link, so a
//! message is delivered in order or its link is gone. Addresses come from gossip, never from the layout.

mod accept;
mod dial;
mod link;
mod links;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use keystore_core::id::NodeId;
use keystore_core::layout::Layout;
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use accept::PeerService;
pub use links::Links;

use crate::about::{About, Gossiped};
use crate::handle::CoreHandle;
use accept::Accepted;
use dial::{Dialler, Target};
use link::LinkEnd;

/// How many connections from peers may wait for their task.
const ACCEPTED_MAX: usize = 64;

/// Why the streams to other members have ended.
#[derive(Debug, Error)]
pub enum PeersError {
    #[error(
        "member {0} has seen a later start of this data directory, or another process that uses a copy of it: the disk \
         was rolled back or cloned, and what this node has acknowledged since is lost here; it must not serve"
    )]
    StaleGeneration(NodeId),
    #[error("a task of a link to another member ended in a panic: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Keeps a link to every other member.
pub struct Peers {
    core: CoreHandle,
    links: Arc<Links>,
    me: NodeId,
    gossiped: watch::Receiver<Arc<Gossiped>>,
    accepted: mpsc::Receiver<Accepted>,
    /// Of each member with a higher UUID, where it is to be dialled.
    targets: BTreeMap<NodeId, (watch::Sender<Target>, CancellationToken)>,
    tasks: JoinSet<LinkEnd>,
}

impl Peers {
    /// The other half answers when a peer dials.
    pub fn new(about: &About, links: Arc<Links>) -> (Self, PeerService) {
        let (accepting, accepted) = mpsc::channel(ACCEPTED_MAX);
        let peers = Self {
            core: about.core.clone(),
            links,
            me: about.node,
            gossiped: about.gossiped.clone(),
            accepted,
            targets: BTreeMap::new(),
            tasks: JoinSet::new(),
        };
        (peers, PeerService::new(accepting))
    }

    pub async fn run(mut self, cancelled: CancellationToken) -> Result<(), PeersError> {
        let mut view = self.core.watch_view();
        loop {
            self.aim(&cancelled);
            tokio::select! {
                () = cancelled.cancelled() => break,
                Some(accepted) = self.accepted.recv() => {
                    let (core, links) = (self.core.clone(), Arc::clone(&self.links));
                    self.tasks.spawn(accepted.run(core, links, cancelled.child_token()));
                }
                Ok(()) = view.changed() => { view.mark_unchanged(); }
                Ok(()) = self.gossiped.changed() => {}
                Some(ended) = self.tasks.join_next() => check(ended)?,
            }
        }
        while let Some(ended) = self.tasks.join_next().await {
            check(ended)?;
        }
        Ok(())
    }

    /// Dials the members that are ours to dial, each where gossip says that it is.
    fn aim(&mut self, cancelled: &CancellationToken) {
        let layout = self.core.view().layout.clone();
        let gossiped = Arc::clone(&self.gossiped.borrow_and_update());
        let wanted = layout.map(|layout| self.wanted(&layout, &gossiped)).unwrap_or_default();
        self.targets.retain(|peer, (_, cancelled)| {
            let keep = wanted.contains_key(peer);
            if !keep {
                cancelled.cancel();
            }
            keep
        });
        for (peer, target) in wanted {
            if let Some((current, _)) = self.targets.get(&peer) {
                current.send_if_modified(|current| std::mem::replace(current, target) != target);
                continue;
            }
            let (sender, receiver) = watch::channel(target);
            let token = cancelled.child_token();
            self.targets.insert(peer, (sender, token.clone()));
            let dialler = Dialler {
                core: self.core.clone(),
                links: Arc::clone(&self.links),
                me: self.me,
                peer,
                target: receiver,
            };
            self.tasks.spawn(dialler.run(token));
        }
    }

    fn wanted(&self, layout: &Layout, gossiped: &Gossiped) -> BTreeMap<NodeId, Target> {
        let ours = layout.members.iter().filter(|member| member.node > self.me);
        ours.filter_map(|member| {
            let known = gossiped.get(&member.node)?;
            let address: SocketAddr = known.peer_address?;
            Some((member.node, Target { address, generation: known.generation }))
        })
        .collect()
    }
}

fn check(ended: Result<LinkEnd, tokio::task::JoinError>) -> Result<(), PeersError> {
    match ended? {
        LinkEnd::Closed => Ok(()),
        LinkEnd::WeAreStale(peer) => {
            error!(%peer, "a member refuses this node's generation");
            Err(PeersError::StaleGeneration(peer))
        }
    }
}
