//! A scan: the pages of one partition after the other, in the order of the ring, as a stream.
//!
//! The order is that of [`RecordKey::place`], the same on every node and for ever, so a scan that goes on after the
//! last key of an earlier one gives exactly the rest. The first pages of the next partitions are asked for ahead and
//! told in their turn. Invariant: a scan holds at most [`AHEAD`] pages that its client has not taken.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use keystore_core::effect::{Answer, Deadline, Operation};
use keystore_core::message::ScanRange;
use keystore_core::partition::{Partition, PartitionCount, RecordKey, encoded_prefix};
use keystore_core::quorum::Consistency;
use keystore_proto::client::{consistency_from_wire, keyspace_or_default, scan_entry};
use keystore_proto::error::WireError;
use keystore_proto::v1;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::{Code, Status};

use super::ask::{Asker, GET_BYTES, unexpected};
use super::outcome::Failed;
use super::timeout::DEFAULT_MS;
use super::turns::{Ticket, Turn, Turns};
use crate::handle::{Request, Reserved, Told};
use crate::memory::Held;
use crate::metrics::{Kind, RequestTimer};

/// How many scans are under way on a node at once; others wait for their turn. Each page keeps the core thread of
/// every replica busy for a moment, and each scan holds [`AHEAD`] pages in memory.
pub(super) const SCANS_MAX: usize = 32;
/// How many keys a page has at most: what a replica reads in about the time that a sync takes.
const PAGE_KEYS_MAX: u32 = 128;
/// How many partitions are asked at once.
const AHEAD: usize = 4;
/// From which size on no more is put into a message: below what gRPC clients take unless told otherwise.
const MESSAGE_BYTES: usize = 1 << 20;

const UNREAD_TOO_LONG: &str =
    "nobody has read this scan while others waited for its turn: go on after the last key that it has shown";

/// What a client wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    keyspace: String,
    /// Of encoded keys.
    prefix: Bytes,
    after: Option<RecordKey>,
    /// `None`: all.
    limit: Option<u32>,
    consistency: Option<Consistency>,
}

impl TryFrom<v1::ScanRequest> for Wanted {
    type Error = WireError;

    fn try_from(request: v1::ScanRequest) -> Result<Self, WireError> {
        let v1::ScanRequest { keyspace, prefix, after, limit, consistency } = request;
        let keyspace = keyspace_or_default(&keyspace).to_owned();
        let after = match after.is_empty() {
            true => None,
            false => Some(RecordKey::new(&keyspace, &after)?),
        };
        Ok(Self {
            prefix: encoded_prefix(&keyspace, &prefix)?,
            after,
            limit: (limit > 0).then_some(limit),
            consistency: consistency_from_wire(consistency)?,
            keyspace,
        })
    }
}

/// A scan under way.
#[derive(Debug)]
pub(super) struct Scan {
    asker: Arc<Asker>,
    wanted: Wanted,
    /// Of the whole scan; `None`: as long as its client wants.
    deadline: Option<Deadline>,
    /// Numbers of the partitions that were not asked yet.
    partitions: Range<u16>,
    /// Those that were, in the order of the ring.
    asked: VecDeque<AskedPage>,
    /// What is to be told next, and what it holds.
    entries: VecDeque<v1::ScanEntry>,
    memory: Option<Held>,
    timer: Option<RequestTimer>,
}

#[derive(Debug)]
struct AskedPage {
    partition: Partition,
    answered: oneshot::Receiver<Told>,
}

impl Scan {
    /// Waits for its turn; its messages are made as its client takes them. `timeout_ms` is for the whole scan.
    pub(super) async fn stream(
        asker: Arc<Asker>,
        turns: Arc<Turns<Self>>,
        request: v1::ScanRequest,
        timeout_ms: Result<Option<u64>, Failed>,
    ) -> Result<impl Stream<Item = Result<v1::ScanResponse, Status>>, Failed> {
        let timer = asker.metrics.start(Kind::Scan);
        match Self::prepare(asker, &turns, request, timeout_ms).await {
            Ok((scan, turn)) => {
                let ticket = turns.park(Self { timer: Some(timer), ..scan }, turn);
                Ok(futures::stream::try_unfold(ticket, Self::next))
            }
            Err(failed) => {
                timer.stop(failed.code);
                Err(failed)
            }
        }
    }

    async fn prepare(
        asker: Arc<Asker>,
        turns: &Turns<Self>,
        request: v1::ScanRequest,
        timeout_ms: Result<Option<u64>, Failed>,
    ) -> Result<(Self, Turn), Failed> {
        let timeout_ms = timeout_ms?;
        let wanted = Wanted::try_from(request)?;
        let deadline = timeout_ms.map(|ms| asker.deadline_after(ms));
        let patience = Duration::from_millis(timeout_ms.unwrap_or(DEFAULT_MS));
        let turn = turns.take(patience).await;
        let turn = turn.ok_or_else(|| Failed::overloaded("too many scans are under way on this node"))?;
        let view = asker.about.core.view();
        let layout = view.layout.as_ref().ok_or_else(Failed::not_initialized)?;
        let partitions = first_partition(&wanted, layout.partitions)..layout.partitions.get();
        let (asked, entries) = (VecDeque::new(), VecDeque::new());
        Ok((Self { asker, wanted, deadline, partitions, asked, entries, memory: None, timer: None }, turn))
    }

    /// The next of its messages; `None` at its end.
    async fn next(ticket: Ticket<Self>) -> Result<Option<(v1::ScanResponse, Ticket<Self>)>, Status> {
        let turns = ticket.turns();
        let (mut scan, turn) = ticket.resume().ok_or_else(|| Failed::overloaded(UNREAD_TOO_LONG))?;
        if let Err(failed) = scan.fill().await {
            scan.stop(failed.code);
            return Err(failed.into());
        }
        if scan.entries.is_empty() {
            scan.stop(Code::Ok);
            return Ok(None);
        }
        Ok(Some((scan.message(), turns.park(scan, turn))))
    }

    fn stop(&mut self, code: Code) {
        if let Some(timer) = self.timer.take() {
            timer.stop(code);
        }
    }

    /// Until there is something to tell, or the scan has come to its end.
    async fn fill(&mut self) -> Result<(), Failed> {
        while self.entries.is_empty() && self.wanted.limit != Some(0) {
            while self.asked.len() < AHEAD
                && let Some(partition) = self.partitions.next().map(Partition)
            {
                let after = self.wanted.after.take();
                let page = self.ask(partition, after)?;
                self.asked.push_back(page);
            }
            let Some(AskedPage { partition, answered }) = self.asked.front_mut() else { return Ok(()) };
            let (partition, told) = (*partition, answered.await);
            self.asked.pop_front();
            let Told { answer, memory } = told.map_err(|_stopped| Failed::unknown(true))?;
            self.memory = memory;
            self.take(partition, answer)?;
        }
        Ok(())
    }

    /// Takes in a page, and asks for the next one of its partition.
    fn take(&mut self, partition: Partition, answer: Answer) -> Result<(), Failed> {
        let (entries, next) = match answer {
            Answer::Scanned { entries, next } => (entries, next),
            Answer::Failed(failure) => {
                let failed = self.asker.failed(failure, &self.wanted.keyspace, true);
                return Err(failed.of(format_args!("the scan has ended at partition {partition}")));
            }
            other => return Err(unexpected(&other, true)),
        };
        for (key, values) in entries {
            if let Some(left) = &mut self.wanted.limit {
                let Some(less) = left.checked_sub(1) else { break };
                *left = less;
            }
            self.entries.push_back(scan_entry(&key, values));
        }
        if let Some(after) = next
            && self.wanted.limit != Some(0)
        {
            let page = self.ask(partition, Some(after))?;
            self.asked.push_front(page);
        }
        Ok(())
    }

    fn ask(&self, partition: Partition, after: Option<RecordKey>) -> Result<AskedPage, Failed> {
        let Wanted { keyspace, prefix, limit, consistency, .. } = &self.wanted;
        let limit = limit.unwrap_or(PAGE_KEYS_MAX).min(PAGE_KEYS_MAX);
        let page = self.asker.deadline_after(DEFAULT_MS);
        let deadline = self.deadline.filter(|whole| whole.mono_ms < page.mono_ms).unwrap_or(page);
        if deadline.mono_ms <= self.asker.about.core.clock().mono_ms() {
            return Err(Failed::deadline_exceeded(true));
        }
        let request = Request {
            operation: Operation::Scan {
                keyspace: keyspace.clone(),
                range: ScanRange { partition, prefix: prefix.clone(), after, limit },
            },
            consistency: *consistency,
            durability: None,
            deadline,
            reserved: Reserved { memory: self.asker.reserve(GET_BYTES)?, turn: None },
        };
        let answered = self.asker.about.core.request(request).map_err(Failed::from)?;
        Ok(AskedPage { partition, answered })
    }

    fn message(&mut self) -> v1::ScanResponse {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < MESSAGE_BYTES
            && let Some(entry) = self.entries.pop_front()
        {
            bytes += entry.encoded_len();
            entries.push(entry);
        }
        v1::ScanResponse { entries }
    }
}

/// Everything before it lies before what is wanted.
fn first_partition(wanted: &Wanted, count: PartitionCount) -> u16 {
    wanted.after.as_ref().map_or(0, |after| after.partition(count).0)
}

#[cfg(test)]
mod tests {
    use keystore_core::partition::KeyError;

    use super::*;

    #[test]
    fn a_scan_goes_on_in_the_partition_of_the_key_after_which_it_begins() {
        let count = PartitionCount::new(256).unwrap();
        for key in ["a", "b", "c"] {
            let request = v1::ScanRequest { after: key.into(), ..Default::default() };
            let wanted = Wanted::try_from(request).unwrap();
            let key = RecordKey::new("default", key.as_bytes()).unwrap();
            assert_eq!(first_partition(&wanted, count), key.partition(count).0);
            let slots = count.slots(key.partition(count));
            assert!(slots.contains(&u32::from(key.slot())), "its place lies in that partition");
        }
        let all = Wanted::try_from(v1::ScanRequest::default()).unwrap();
        assert_eq!((first_partition(&all, count), all.limit), (0, None));
    }

    #[tokio::test]
    async fn a_scan_that_has_lost_its_turn_ends_with_an_error_and_not_as_if_it_were_whole() {
        let ended = Scan::next(Ticket::lost()).await;
        assert_eq!(ended.err().map(|status| status.code()), Some(Code::ResourceExhausted));
    }

    #[test]
    fn a_scan_that_breaks_a_limit_is_refused() {
        let long = Bytes::from(vec![b'k'; 1025]);
        for request in [
            v1::ScanRequest { prefix: long.clone(), ..Default::default() },
            v1::ScanRequest { after: long.clone(), ..Default::default() },
        ] {
            assert_eq!(Wanted::try_from(request), Err(WireError::Key(KeyError::KeyLength(1025))));
        }
    }
}
