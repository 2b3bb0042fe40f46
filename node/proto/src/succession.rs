//! How layouts follow each other, on the wire and on disk: votes, evidence, and how far a node has merged.

use std::collections::BTreeSet;

use bytes::Bytes;
use keystore_core::id::{Epoch, Generation, Incarnation};
use keystore_core::layout::Layout;
use keystore_core::message::Message;
use keystore_core::partition::{Partition, RecordKey, SLOTS};
use keystore_core::paxos::{Ballot, Say, Vote, Votes};
use keystore_core::succession::{Evidence, Standing};
use keystore_core::transfer::{Merge, Merges};

use crate::error::WireError;
use crate::field::{node, uuid_bytes};
use crate::v1;
use crate::v1::paxos_message::Say as SayKind;

pub(crate) fn layout_from_wire(layout: v1::Layout) -> Result<Layout, WireError> {
    Layout::try_from(layout).map_err(|error| WireError::Layout(Box::new(error)))
}

fn partition(number: u32) -> Result<Partition, WireError> {
    let known = u16::try_from(number).ok().filter(|number| u32::from(*number) < SLOTS);
    known.map(Partition).ok_or(WireError::Partition(number))
}

pub(crate) fn standing_to_wire(standing: &Standing) -> v1::StandingMessage {
    let Standing { fence, phase, whole, clears, doubted } = standing;
    let numbers = |partitions: &BTreeSet<Partition>| partitions.iter().map(|p| p.0.into()).collect();
    v1::StandingMessage {
        fence: fence.0,
        phase: phase.0,
        whole: numbers(whole),
        clears: *clears,
        doubted: numbers(doubted),
    }
}

pub(crate) fn standing_from_wire(standing: v1::StandingMessage) -> Result<Standing, WireError> {
    let v1::StandingMessage { fence, phase, whole, clears, doubted } = standing;
    let whole = whole.into_iter().map(partition).collect::<Result<_, _>>()?;
    let doubted = doubted.into_iter().map(partition).collect::<Result<_, _>>()?;
    Ok(Standing { fence: Epoch(fence), phase: Epoch(phase), whole, clears, doubted })
}

fn ballot_to_wire(ballot: Ballot) -> v1::PaxosBallot {
    let Ballot { round, proposer, generation } = ballot;
    v1::PaxosBallot { round, proposer: uuid_bytes(&proposer.0), generation: generation.0 }
}

fn ballot_from_wire(ballot: Option<v1::PaxosBallot>) -> Result<Ballot, WireError> {
    let v1::PaxosBallot { round, proposer, generation } = ballot.ok_or(WireError::Missing("ballot"))?;
    Ok(Ballot { round, proposer: node("proposer", &proposer)?, generation: Generation(generation) })
}

fn proposal_to_wire(layout: &Layout, evidence: &Evidence) -> v1::PaxosProposal {
    let evidence = evidence.iter().map(|(node, standing)| v1::PaxosEvidence {
        node_id: uuid_bytes(&node.0),
        standing: Some(standing_to_wire(standing)),
    });
    v1::PaxosProposal { layout: Some(layout.into()), evidence: evidence.collect() }
}

fn proposal_from_wire(proposal: v1::PaxosProposal) -> Result<(Layout, Evidence), WireError> {
    let v1::PaxosProposal { layout, evidence } = proposal;
    let layout = layout_from_wire(layout.ok_or(WireError::Missing("layout"))?)?;
    let evidence = evidence.into_iter().map(|v1::PaxosEvidence { node_id, standing }| {
        let standing = standing.ok_or(WireError::Missing("standing"))?;
        Ok((node("node_id", &node_id)?, standing_from_wire(standing)?))
    });
    Ok((layout, evidence.collect::<Result<_, WireError>>()?))
}

fn vote_to_wire(vote: &Vote) -> v1::PaxosVote {
    let Vote { ballot, layout, evidence } = vote;
    let proposal = Some(proposal_to_wire(layout, evidence));
    v1::PaxosVote { ballot: Some(ballot_to_wire(*ballot)), proposal }
}

fn vote_from_wire(vote: v1::PaxosVote) -> Result<Vote, WireError> {
    let v1::PaxosVote { ballot, proposal } = vote;
    let ballot = ballot_from_wire(ballot)?;
    let (layout, evidence) = proposal_from_wire(proposal.ok_or(WireError::Missing("proposal"))?)?;
    Ok(Vote { ballot, layout, evidence })
}

pub(crate) fn say_to_wire(epoch: Epoch, ballot: Ballot, say: Say) -> v1::PaxosMessage {
    let say = match say {
        Say::Prepare => SayKind::Prepare(true),
        Say::Promise { accepted } => {
            SayKind::Promise(v1::PaxosPromise { vote: accepted.as_ref().map(vote_to_wire) })
        }
        Say::Accept { layout, evidence } => SayKind::Accept(proposal_to_wire(&layout, &evidence)),
        Say::Accepted => SayKind::Accepted(true),
        Say::Outbid { promised } => SayKind::Outbid(ballot_to_wire(promised)),
        Say::Refused { why } => SayKind::Refused(why),
    };
    v1::PaxosMessage { epoch: epoch.0, ballot: Some(ballot_to_wire(ballot)), say: Some(say) }
}

pub(crate) fn say_from_wire(message: v1::PaxosMessage) -> Result<Message, WireError> {
    let v1::PaxosMessage { epoch, ballot, say } = message;
    let say = match say.ok_or(WireError::Missing("say"))? {
        SayKind::Prepare(_) => Say::Prepare,
        SayKind::Promise(v1::PaxosPromise { vote }) => {
            Say::Promise { accepted: vote.map(vote_from_wire).transpose()? }
        }
        SayKind::Accept(proposal) => {
            let (layout, evidence) = proposal_from_wire(proposal)?;
            Say::Accept { layout, evidence }
        }
        SayKind::Accepted(_) => Say::Accepted,
        SayKind::Outbid(promised) => Say::Outbid { promised: ballot_from_wire(Some(promised))? },
        SayKind::Refused(why) => Say::Refused { why },
    };
    Ok(Message::Paxos { epoch: Epoch(epoch), ballot: ballot_from_wire(ballot)?, say: Box::new(say) })
}

/// A voter's votes as they are on disk.
pub fn votes_to_wire(votes: &Votes) -> v1::PaxosVotes {
    let Votes { epoch, promised, accepted } = votes;
    v1::PaxosVotes {
        epoch: epoch.0,
        promised: Some(ballot_to_wire(*promised)),
        vote: accepted.as_ref().map(vote_to_wire),
    }
}

pub fn votes_from_wire(votes: v1::PaxosVotes) -> Result<Votes, WireError> {
    let v1::PaxosVotes { epoch, promised, vote } = votes;
    Ok(Votes {
        epoch: Epoch(epoch),
        promised: ballot_from_wire(promised)?,
        accepted: vote.map(vote_from_wire).transpose()?,
    })
}

/// How far a node has come, as it is on disk.
pub fn merges_to_wire(merges: &Merges) -> v1::Merges {
    let merge = |(partition, merge): (&Partition, &Merge)| {
        let (source, after) = match &merge.pass {
            Some((source, after)) => (Some(uuid_bytes(&source.0)), after.as_ref().map(RecordKey::encoded)),
            None => (None, None),
        };
        v1::PartitionMerge {
            partition: partition.0.into(),
            sources: merge.sources.iter().map(|node| uuid_bytes(&node.0)).collect(),
            source,
            after: after.cloned().unwrap_or_default(),
        }
    };
    v1::Merges {
        phase: merges.phase.0,
        partitions: merges.partitions.iter().map(merge).collect(),
        uncleared: merges.uncleared.iter().map(|partition| partition.0.into()).collect(),
        counted: merges.counted.iter().map(|partition| partition.0.into()).collect(),
        counted_in: (merges.counted_in != Incarnation::default()).then(|| merges.counted_in.into()),
    }
}

pub fn merges_from_wire(merges: v1::Merges) -> Result<Merges, WireError> {
    let v1::Merges { phase, partitions, uncleared, counted, counted_in } = merges;
    let merge = |wire: v1::PartitionMerge| {
        let v1::PartitionMerge { partition: number, sources, source, after } = wire;
        let nodes = sources.iter().map(|source| node("sources", source));
        let after = match after.is_empty() {
            true => None,
            false => Some(RecordKey::from_encoded(Bytes::copy_from_slice(&after))?),
        };
        let pass = source.map(|source| Ok::<_, WireError>((node("source", &source)?, after))).transpose()?;
        Ok::<(Partition, Merge), WireError>((
            partition(number)?,
            Merge { sources: nodes.collect::<Result<_, _>>()?, pass },
        ))
    };
    let partitions = partitions.into_iter().map(merge).collect::<Result<_, _>>()?;
    let uncleared = uncleared.into_iter().map(partition).collect::<Result<_, _>>()?;
    let counted = counted.into_iter().map(partition).collect::<Result<_, _>>()?;
    // Whoever has seen no recovery says nothing of these.
    let counted_in = counted_in.map(Incarnation::from).unwrap_or_default();
    Ok(Merges { phase: Epoch(phase), partitions, uncleared, counted, counted_in })
}

#[cfg(test)]
mod tests {
    use keystore_core::id::NodeId;

    use super::*;

    const NODE: NodeId = NodeId([7; 16]);

    #[test]
    fn what_was_merged_reads_back() {
        let key = RecordKey::new("default", b"k").unwrap();
        let partitions = [
            (Partition(1), Merge { sources: BTreeSet::from([NODE]), pass: Some((NODE, Some(key))) }),
            (Partition(2), Merge { sources: BTreeSet::new(), pass: Some((NODE, None)) }),
            (Partition(4_095), Merge { sources: BTreeSet::from([NODE]), pass: None }),
        ];
        let merges = Merges {
            phase: Epoch(3),
            partitions: partitions.into_iter().collect(),
            uncleared: BTreeSet::from([Partition(5)]),
            counted: BTreeSet::from([Partition(6)]),
            counted_in: Incarnation { number: 2, id: 9 },
        };
        assert_eq!(merges_from_wire(merges_to_wire(&merges)), Ok(merges));
    }

    #[test]
    fn a_partition_that_cannot_be_is_refused() {
        let standing = v1::StandingMessage { whole: vec![4_096], ..Default::default() };
        assert!(standing_from_wire(standing).is_err());
        let standing = v1::StandingMessage { doubted: vec![4_096], ..Default::default() };
        assert!(standing_from_wire(standing).is_err());
    }
}
