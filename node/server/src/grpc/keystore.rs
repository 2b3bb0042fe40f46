//! The service for clients: its calls, each checked and handed to the core, and told how it ended.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use keystore_proto::v1;
use keystore_proto::v1::key_store_server::KeyStore;
use keystore_proto::v1::operation::Operation;
use keystore_proto::v1::outcome::Outcome;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::ask::{Asker, Ended, Terms};
use super::outcome::{Failed, REFUSED_PAUSE, saturated};
use super::scan::{SCANS_MAX, Scan};
use super::session::Session;
use super::timeout::{stream_timeout_ms, timeout_ms};
use super::turns::Turns;
use crate::about::About;
use crate::memory::{Held, Memory, SMALL_BYTES, Unsent};
use crate::metrics::RequestMetrics;

#[derive(Debug, Clone)]
pub struct KeyStoreService {
    asker: Arc<Asker>,
    scans: Arc<Turns<Scan>>,
    closing: CancellationToken,
}

impl KeyStoreService {
    /// `closing` is cancelled when connections are to end, after the core has.
    pub fn new(about: About, metrics: RequestMetrics, closing: CancellationToken) -> Self {
        let asker = Arc::new(Asker::new(about, metrics));
        Self { asker, scans: Turns::new(SCANS_MAX), closing }
    }

    /// One operation as a call of its own.
    async fn call(&self, metadata: &MetadataMap, operation: Operation) -> Result<Ended, Failed> {
        let operation = v1::Operation { operation: Some(operation) };
        let told = match self.asker.ask(operation, self.terms(metadata)) {
            Ok(asked) => asked.await,
            Err(failed) => Err(failed),
        };
        hold_back(told).await
    }

    /// For what all requests hold.
    pub fn memory(&self) -> &Memory {
        &self.asker.memory
    }

    fn terms(&self, metadata: &MetadataMap) -> Result<Terms, Failed> {
        let deadline = self.asker.deadline_after(timeout_ms(metadata)?);
        Ok(Terms { deadline, memory: None, turn: None })
    }
}

/// Whoever is refused for overload and asks again at once would take the time that others' requests need.
async fn hold_back<T>(told: Result<T, Failed>) -> Result<T, Failed> {
    if told.as_ref().is_err_and(Failed::is_overload) {
        sleep(REFUSED_PAUSE).await;
    }
    told
}

/// With what is held of it until it is sent.
fn response<T>(answer: T, memory: Option<Held>) -> Response<T> {
    let mut response = Response::new(answer);
    if let Some(memory) = memory.filter(|memory| memory.bytes() > SMALL_BYTES) {
        let unsent = Unsent::default();
        unsent.add(Some(memory));
        response.extensions_mut().insert(unsent);
    }
    response
}

/// The answers of a call that has many.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KeyStore for KeyStoreService {
    type SessionStream = Session<Streaming<v1::SessionRequest>>;
    type ScanStream = Answers<v1::ScanResponse>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let (metadata, _, get) = request.into_parts();
        match self.call(&metadata, Operation::Get(get)).await? {
            Ended { outcome: Outcome::Got(got), memory } => Ok(response(got, memory)),
            other => Err(mismatched(&other.outcome)),
        }
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let (metadata, _, put) = request.into_parts();
        match self.call(&metadata, Operation::Put(put)).await? {
            Ended { outcome: Outcome::Put(put), memory } => Ok(response(put, memory)),
            other => Err(mismatched(&other.outcome)),
        }
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let (metadata, _, delete) = request.into_parts();
        match self.call(&metadata, Operation::Delete(delete)).await? {
            Ended { outcome: Outcome::Deleted(deleted), memory } => Ok(response(deleted, memory)),
            other => Err(mismatched(&other.outcome)),
        }
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Result<Response<v1::BatchResponse>, Status> {
        let (metadata, _, v1::BatchRequest { operations }) = request.into_parts();
        let Terms { deadline, .. } = self.terms(&metadata)?;
        let (outcomes, memory) = hold_back(self.asker.batch(operations, deadline).await).await?;
        Ok(response(v1::BatchResponse { outcomes }, Some(memory)))
    }

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (asker, closing) = (Arc::clone(&self.asker), self.closing.clone());
        let (session, unsent) = Session::new(asker, request.into_inner(), closing);
        let mut response = Response::new(session);
        response.extensions_mut().insert(unsent);
        Ok(response)
    }

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let (metadata, _, request) = request.into_parts();
        let (asker, turns) = (Arc::clone(&self.asker), Arc::clone(&self.scans));
        let messages = Scan::stream(asker, turns, request, stream_timeout_ms(&metadata)).await?;
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_routing(
        &self,
        _request: Request<v1::GetRoutingRequest>,
    ) -> Result<Response<v1::GetRoutingResponse>, Status> {
        let about = &self.asker.about;
        let view = about.core.view();
        let layout = view.layout.as_ref().ok_or_else(Failed::not_initialized)?;
        let nodes = layout.members.iter().map(|member| v1::RoutingNode {
            node_id: member.node.0.to_vec().into(),
            name: member.name.clone(),
            client_address: about.client_address(member.node),
        });
        let owners = layout.partitions.all().map(|partition| {
            let nodes = layout.replicas(partition);
            let index = |node| layout.members.iter().position(|member| member.node == node);
            v1::PartitionOwners { node: nodes.into_iter().filter_map(index).map(saturated).collect() }
        });
        Ok(Response::new(v1::GetRoutingResponse {
            epoch: layout.epoch.0,
            partitions: layout.partitions.get().into(),
            nodes: nodes.collect(),
            owners: owners.collect(),
        }))
    }
}

/// An outcome is of its operation's kind.
fn mismatched(outcome: &Outcome) -> Status {
    tracing::error!(?outcome, "an outcome of the wrong kind");
    Status::unknown("the outcome is unknown: an answer of the wrong kind")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::time::Duration;

    use futures::{FutureExt as _, StreamExt as _};
    use keystore_core::effect::{Answer, Failure, FailureReason};
    use keystore_core::id::{Actor, Generation, NodeId};
    use prometheus_client::registry::Registry;
    use tokio::sync::watch;
    use tonic::Code;

    use super::*;
    use crate::about::SelfAddresses;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::disk::DiskUse;
    use crate::grpc::ask::GET_BYTES;
    use crate::grpc::session::SESSIONS_IN_FLIGHT_MAX;
    use crate::handle::{CoreHandle, Input, Told};
    use crate::inbox::Inbox;
    use crate::view::View;

    /// A service whose core takes what is in the inbox, or does not.
    fn service(config: Config) -> (KeyStoreService, Arc<Inbox<Input>>) {
        let inbox = Arc::new(Inbox::new(config.limits.requests));
        let view = watch::channel(Arc::new(View::starting())).1;
        let stopping = watch::channel(false).1;
        let about = About {
            node: NodeId([1; 16]),
            actor: Actor(1),
            generation: Generation(1),
            core: CoreHandle::new(Arc::clone(&inbox), view, stopping, Clock::new(0)),
            gossiped: watch::channel(Arc::default()).1,
            ours: watch::channel(SelfAddresses::of(&config, None)).1,
            disk: watch::channel(DiskUse::default()).1,
            history: watch::channel(Arc::default()).1,
            config: Arc::new(config),
        };
        (
            KeyStoreService::new(
                about,
                RequestMetrics::register(&mut Registry::default()),
                CancellationToken::new(),
            ),
            inbox,
        )
    }

    #[test]
    fn memory_stays_reserved_while_the_core_has_the_request_of_a_caller_that_is_gone() {
        let (service, inbox) = service(Config::default());
        let all = service.asker.memory.left();
        let put =
            v1::PutRequest { key: "k".into(), value: vec![7; 1000].into(), ..v1::PutRequest::default() };
        assert!(service.put(Request::new(put)).now_or_never().is_none(), "the core has not answered");
        assert_eq!(service.asker.memory.left(), all - 1000);
        let get = v1::GetRequest { key: "k".into(), ..v1::GetRequest::default() };
        assert!(service.get(Request::new(get)).now_or_never().is_none(), "the core has not answered");
        assert_eq!(service.asker.memory.left(), all - 1000 - GET_BYTES);
        let mut batch = VecDeque::new();
        inbox.take(&mut batch, Duration::ZERO);
        assert_eq!(batch.len(), 2);
        drop(batch);
        assert_eq!(service.asker.memory.left(), all);
    }

    #[tokio::test(start_paused = true)]
    async fn more_reads_than_memory_allows_are_refused() {
        let mut config = Config::default();
        config.limits.request_bytes = 2 * GET_BYTES;
        let (service, _inbox) = service(config);
        let get = || {
            let get = v1::GetRequest { key: "k".into(), ..v1::GetRequest::default() };
            service.get(Request::new(get))
        };
        assert!(get().now_or_never().is_none());
        assert!(get().now_or_never().is_none());
        assert_eq!(get().await.unwrap_err().code(), Code::ResourceExhausted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_has_too_much_to_do_answers_before_it_reads_and_refuses_one_at_a_time() {
        let mut config = Config::default();
        config.limits.request_bytes = 2 * GET_BYTES;
        let (service, inbox) = service(config);
        let get = |id| {
            let get = v1::GetRequest { key: "k".into(), ..v1::GetRequest::default() };
            let operation = Some(v1::Operation { operation: Some(Operation::Get(get)) });
            Ok(v1::SessionRequest { id, timeout_ms: 0, operation })
        };
        let all = futures::stream::iter((0..1_000).map(get));
        let (mut session, _) = Session::new(Arc::clone(&service.asker), all, CancellationToken::new());
        let begun = tokio::time::Instant::now();
        let refused = session.next().await.unwrap().unwrap();
        assert_eq!(refused.id, 2);
        assert!(session.next().now_or_never().is_none(), "nothing more is read at once");
        let mut waiting = VecDeque::new();
        inbox.take(&mut waiting, Duration::ZERO);
        let Some(Input::Request { answer, .. }) = waiting.pop_front() else { panic!("the first get") };
        let failed = Failure { reason: FailureReason::QuorumUnreachable, acks: 0, needed: 2 };
        answer.send(Told { answer: Answer::Failed(failed), memory: None }).unwrap();
        assert_eq!(session.next().await.unwrap().unwrap().id, 0);
        assert_eq!(begun.elapsed(), Duration::ZERO, "an answer does not wait");
        assert!(session.next().now_or_never().is_none());
        assert_eq!(session.next().await.unwrap().unwrap().id, 4, "3 has the place of 0");
        assert!(begun.elapsed() >= REFUSED_PAUSE);
    }

    #[tokio::test]
    async fn sessions_share_what_all_may_have_under_way_and_leave_some_to_the_next() {
        let (service, inbox) = service(Config::default());
        let put = |id| {
            let put = v1::PutRequest { key: "k".into(), ..v1::PutRequest::default() };
            let operation = Some(v1::Operation { operation: Some(Operation::Put(put)) });
            Ok(v1::SessionRequest { id, timeout_ms: 0, operation })
        };
        let session = || {
            let all = futures::stream::iter((0..).map(put));
            Session::new(Arc::clone(&service.asker), all, CancellationToken::new()).0
        };
        let waiting = || {
            let mut waiting = VecDeque::new();
            inbox.take(&mut waiting, Duration::ZERO);
            waiting
        };
        let (mut first, mut second) = (session(), session());
        assert!(first.next().now_or_never().is_none());
        let mut of_first = waiting();
        assert_eq!(of_first.len(), SESSIONS_IN_FLIGHT_MAX / 2, "one alone");
        assert!(second.next().now_or_never().is_none());
        let of_second = waiting();
        assert_eq!(of_second.len(), SESSIONS_IN_FLIGHT_MAX / 4, "half of what is left");
        // The core answers some, whether or not the client reads the answers.
        let failed =
            || Answer::Failed(Failure { reason: FailureReason::QuorumUnreachable, acks: 0, needed: 2 });
        for _ in 0..SESSIONS_IN_FLIGHT_MAX / 4 {
            let Some(Input::Request { answer, .. }) = of_first.pop_front() else { panic!("a put") };
            answer.send(Told { answer: failed(), memory: None }).unwrap();
        }
        assert!(second.next().now_or_never().is_none());
        assert_eq!(waiting().len(), SESSIONS_IN_FLIGHT_MAX / 8, "half of what has become free");
        assert_eq!(first.next().await.unwrap().unwrap().id, 0);
        drop((of_first, of_second));
    }

    #[tokio::test]
    async fn a_session_ends_once_nothing_more_comes_and_all_is_answered() {
        let (service, inbox) = service(Config::default());
        let (sending, incoming) = futures::channel::mpsc::unbounded();
        let (mut session, _) = Session::new(Arc::clone(&service.asker), incoming, CancellationToken::new());
        let get = v1::GetRequest { key: "k".into(), ..v1::GetRequest::default() };
        let operation = Some(v1::Operation { operation: Some(Operation::Get(get)) });
        sending.unbounded_send(Ok(v1::SessionRequest { id: 7, timeout_ms: 0, operation })).unwrap();
        assert!(session.next().now_or_never().is_none());
        let mut waiting = VecDeque::new();
        inbox.take(&mut waiting, Duration::ZERO);
        // The core is gone.
        drop(waiting);
        assert_eq!(session.next().await.unwrap().unwrap().id, 7);
        assert!(session.next().now_or_never().is_none());
        drop(sending);
        assert!(session.next().now_or_never().is_some_and(|ended| ended.is_none()));
    }
}
