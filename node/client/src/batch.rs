//! Many operations in few messages: one for each node that is to coordinate some of them.
//!
//! A batch is no transaction: each operation has the outcome that it would have had alone. What a group's message
//! did not bring about, and may be sent again, goes on by itself under the same deadline.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use keystore_proto::v1;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::Error;
use crate::execute::{Limits, Unary, attempt};
use crate::grpc::CallError;
use crate::node::Node;
use crate::operation::Operation;
use crate::options::Answer;
use crate::trail::Trail;
use crate::verdict::{Miss, Retry, Verdict};

const BATCH: &str = "/keystore.v1.KeyStore/Batch";
/// What nodes take in one message.
pub const BATCH_OPERATIONS_MAX: usize = 1000;
/// Of keys, values and contexts.
pub const BATCH_BYTES_MAX: usize = 3 << 20;
/// How many operations of a batch go on by themselves at a time.
const ALONE_MAX: usize = 64;

/// Operations that go to one node, each with its place in the batch.
struct Group<'a> {
    node: Arc<Node>,
    any_connected: bool,
    operations: Vec<(usize, &'a Operation)>,
}

type Outcomes = Vec<(usize, Result<Answer, Verdict>)>;

impl Client {
    /// Performs up to [`BATCH_OPERATIONS_MAX`] operations with at most [`BATCH_BYTES_MAX`] bytes, in no order among
    /// themselves, and returns their outcomes in the order given. They are answered together, so the shortest
    /// timeout among theirs is that of all. Fails as a whole only if it is too large; nothing was sent then.
    ///
    /// ```no_run
    /// # async fn example(client: keystore_client::Client) -> Result<(), keystore_client::Error> {
    /// use keystore_client::{Operation, ReadOptions, WriteOptions};
    /// let operations = [
    ///     Operation::put("default", "a", "1", WriteOptions::default())?,
    ///     Operation::get("default", "b", ReadOptions::default())?,
    /// ];
    /// for outcome in client.batch(operations).await? {
    ///     println!("{outcome:?}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn batch(
        &self,
        operations: impl IntoIterator<Item = Operation>,
    ) -> Result<Vec<Result<Answer, Error>>, Error> {
        let levels = self.defaults.levels;
        let operations: Vec<_> =
            operations.into_iter().map(|operation| operation.or_levels(levels)).collect();
        check_size(&operations)?;
        let named = operations.iter().filter_map(|operation| operation.timeout).min();
        let deadline = Instant::now() + self.defaults.timeout(named);
        let groups = self.group(&operations);
        let mut outcomes: Outcomes = join_all(groups.iter().map(|group| self.send(group, deadline)))
            .await
            .into_iter()
            .flatten()
            .collect();
        outcomes.sort_by_key(|(place, _)| *place);
        // Collected, and not a closure: programs may send a batch from a task that moves between threads.
        let finished: Vec<_> = outcomes
            .into_iter()
            .zip(&operations)
            .map(|((_, outcome), operation)| self.finish(operation, outcome, deadline))
            .collect();
        Ok(stream::iter(finished).buffered(ALONE_MAX).collect().await)
    }

    async fn finish(
        &self,
        operation: &Operation,
        outcome: Result<Answer, Verdict>,
        deadline: Instant,
    ) -> Result<Answer, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        match outcome {
            Ok(answer) => Ok(answer),
            Err(verdict) => self.go_on(operation, verdict, left).await,
        }
    }

    /// Each operation goes to the node that it would go to alone.
    fn group<'a>(&self, operations: &'a [Operation]) -> Vec<Group<'a>> {
        let trail = Trail::new(self.defaults.patience);
        let candidates = self.router.candidates(None);
        let mut groups: Vec<Group<'a>> = Vec::new();
        for (place, operation) in operations.iter().enumerate() {
            let candidates = candidates.of_key(&operation.key);
            let node = candidates.choose(&trail).expect("a router has endpoints");
            match groups.iter_mut().find(|group| Arc::ptr_eq(&group.node, node)) {
                Some(group) => group.operations.push((place, operation)),
                None => groups.push(Group {
                    node: node.clone(),
                    any_connected: candidates.any_connected(&trail),
                    operations: vec![(place, operation)],
                }),
            }
        }
        groups
    }

    async fn send(&self, group: &Group<'_>, deadline: Instant) -> Outcomes {
        let Group { node, any_connected, operations } = group;
        let wire =
            |(_, operation): &(usize, &Operation)| v1::Operation { operation: Some(operation.wire.clone()) };
        let request = v1::BatchRequest { operations: operations.iter().map(wire).collect() };
        let limits = Limits::of(node, *any_connected, deadline);
        let result: Result<v1::BatchResponse, Miss> =
            attempt(node, &Unary { path: BATCH, request: &request }, limits).await;
        let outcomes = match result {
            Ok(response) if response.outcomes.len() == operations.len() => {
                node.note_success();
                response.outcomes.into_iter().map(told).collect()
            }
            Ok(_) => vec![Err(bad("it has not one outcome for each operation")); operations.len()],
            Err(miss) => vec![Err(miss); operations.len()],
        };
        let judged = outcomes.into_iter().zip(operations).map(|(outcome, (place, operation))| {
            let unclear = |error| Verdict { error, retry: Retry::Never, blames_node: false };
            let outcome = match outcome {
                Ok(outcome) => operation.answer(outcome).map_err(unclear),
                Err(miss) => Err(Verdict::of(operation.kind, node.address(), miss)),
            };
            (*place, outcome)
        });
        let judged: Outcomes = judged.collect();
        if judged.iter().any(|(_, outcome)| matches!(outcome, Err(verdict) if verdict.blames_node)) {
            node.note_failure();
            self.router.note_stale();
        }
        judged
    }

    /// Alone, if it may be sent again.
    async fn go_on(&self, operation: &Operation, verdict: Verdict, left: Duration) -> Result<Answer, Error> {
        let error = verdict.error;
        match verdict.retry {
            Retry::Never => Err(error),
            _ if left.is_zero() => Err(error),
            Retry::ElsewhereOnce | Retry::Elsewhere | Retry::Later => {
                self.perform_within(operation, left, Some(error)).await
            }
        }
    }
}

fn check_size(operations: &[Operation]) -> Result<(), Error> {
    let count = operations.len();
    if count > BATCH_OPERATIONS_MAX {
        return Err(Error::invalid(format!(
            "a batch has at most {BATCH_OPERATIONS_MAX} operations, this one has {count}"
        )));
    }
    let bytes: usize = operations.iter().map(Operation::carried_bytes).sum();
    if bytes > BATCH_BYTES_MAX {
        return Err(Error::invalid(format!(
            "a batch has at most {BATCH_BYTES_MAX} bytes of keys, values and contexts, this one has {bytes}"
        )));
    }
    Ok(())
}

fn told(outcome: v1::Outcome) -> Result<v1::outcome::Outcome, Miss> {
    match outcome.outcome {
        Some(v1::outcome::Outcome::Failed(failure)) => Err(Miss::Call(CallError::Failure(failure))),
        Some(outcome) => Ok(outcome),
        None => Err(bad("an operation has no outcome")),
    }
}

fn bad(problem: &str) -> Miss {
    Miss::Call(CallError::BadAnswer(problem.to_owned()))
}
