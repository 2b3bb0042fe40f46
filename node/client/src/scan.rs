//! The keys of a keyspace as a stream that outlives the node it comes from.
//!
//! When a stream breaks, another node goes on after the last key that was returned: keys come in the same order
//! from each, so none comes twice, and none is left out that was there all along.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use futures::stream::try_unfold;
use keystore_core::partition::{RecordKey, encoded_prefix};
use keystore_proto::v1;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::Client;
use crate::connection::Connection;
use crate::error::{Detail, Error, Reason};
use crate::execute::{Limits, connected, more_telling};
use crate::grpc::Messages;
use crate::node::Node;
use crate::operation::{consistency_or_unspecified, read};
use crate::options::{Entry, ScanOptions};
use crate::trail::{Next, Trail};
use crate::verdict::{Kind, Miss};

const SCAN: &str = "/keystore.v1.KeyStore/Scan";

/// A scan under way. Each page of it is a read of its own: together they are not one moment in time.
pub struct Scan {
    client: Client,
    /// What is still to come.
    request: v1::ScanRequest,
    timeout: Duration,
    page: VecDeque<Entry>,
    source: Option<Source>,
    trail: Trail,
    is_ended: bool,
}

/// The stream that the next page is to come from.
struct Source {
    node: Arc<Node>,
    connection: Arc<Connection>,
    answers: Messages,
}

impl Client {
    /// Returns the keys of a keyspace, with their values, in an order that is always the same.
    ///
    /// ```no_run
    /// # async fn example(client: keystore_client::Client) -> Result<(), keystore_client::Error> {
    /// use keystore_client::ScanOptions;
    /// let options = ScanOptions { prefix: "user/".into(), ..ScanOptions::default() };
    /// let mut scan = client.scan("default", options)?;
    /// while let Some(entry) = scan.next().await? {
    ///     println!("{:?} has {} values", entry.key, entry.read.values.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn scan(&self, keyspace: &str, options: ScanOptions) -> Result<Scan, Error> {
        let ScanOptions { prefix, after, limit, consistency, timeout } = options;
        // On the wire 0 means all, and so does an empty key: neither is what the caller has said.
        let is_ended = limit == Some(0);
        if after.as_ref().is_some_and(Bytes::is_empty) {
            return Err(Error::invalid("a key is not empty, so nothing comes after such a one"));
        }
        encoded_prefix(keyspace, &prefix).map_err(Error::invalid)?;
        if let Some(after) = &after {
            RecordKey::new(keyspace, after).map_err(Error::invalid)?;
        }
        let consistency = consistency.or(self.defaults.levels.consistency);
        let request = v1::ScanRequest {
            keyspace: keyspace.to_owned(),
            prefix,
            after: after.unwrap_or_default(),
            limit: limit.unwrap_or_default(),
            consistency: consistency_or_unspecified(consistency),
        };
        Ok(Scan {
            client: self.clone(),
            request,
            timeout: self.defaults.timeout(timeout),
            page: VecDeque::new(),
            source: None,
            trail: Trail::new(self.defaults.patience),
            is_ended,
        })
    }
}

impl Scan {
    /// The next key; `None` after the last one. Fails if no node goes on within the timeout. Calling it again then
    /// goes on after the last key that was returned.
    pub async fn next(&mut self) -> Result<Option<Entry>, Error> {
        loop {
            if let Some(entry) = self.page.pop_front() {
                self.note_returned(&entry);
                return Ok(Some(entry));
            }
            if self.is_ended {
                return Ok(None);
            }
            self.fill().await?;
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Entry, Error>> + Send {
        try_unfold(self, |mut scan| async move { Ok(scan.next().await?.map(|entry| (entry, scan))) })
    }

    fn note_returned(&mut self, entry: &Entry) {
        self.request.after = entry.key.clone();
        if self.request.limit > 0 {
            self.request.limit -= 1;
            if self.request.limit == 0 {
                // On the wire that would mean all.
                self.is_ended = true;
                self.page.clear();
                self.source = None;
            }
        }
    }

    /// Gets another page, or learns that there is none.
    async fn fill(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        let router = self.client.router.clone();
        let mut told = None;
        loop {
            let (node, limits) = match &self.source {
                Some(source) => (source.node.clone(), Limits { connected: deadline, until: deadline }),
                None => {
                    let candidates = router.candidates(None);
                    let node = candidates.choose(&self.trail).expect("a router has endpoints").clone();
                    let limits = Limits::of(&node, candidates.any_connected(&self.trail), deadline);
                    (node, limits)
                }
            };
            self.trail.note(node.clone());
            let verdict = match self.next_page(&node, limits).await {
                Ok(page) => {
                    node.note_success();
                    self.trail = Trail::new(self.client.defaults.patience);
                    return self.take(page);
                }
                Err(miss) => router.judge(Kind::Read, &node, miss),
            };
            self.source = None;
            let error = more_telling(told, verdict.error);
            let others_left = router.candidates(None).any_not_asked(&self.trail);
            match self.trail.next(verdict.retry, others_left) {
                Next::TryAfter(pause) if Instant::now() + pause < deadline => {
                    tracing::debug!(%error, node = node.address(), "scan goes on elsewhere");
                    told = Some(error);
                    sleep(pause).await;
                }
                Next::TryAfter(_) | Next::GiveUp => {
                    self.trail = Trail::new(self.client.defaults.patience);
                    return Err(error);
                }
            }
        }
    }

    async fn next_page(
        &mut self,
        node: &Arc<Node>,
        limits: Limits,
    ) -> Result<Option<v1::ScanResponse>, Miss> {
        let mut source = match self.source.take() {
            Some(source) => source,
            None => {
                let connection = connected(node, limits).await?;
                let answers = connection.stream_answers(SCAN, &self.request);
                let answers = timeout_at(limits.until, answers).await;
                let answers = answers.map_err(|_| Miss::Silence)?.map_err(Miss::Call)?;
                Source { node: node.clone(), connection, answers }
            }
        };
        let page = timeout_at(limits.until, source.connection.next_answer(&mut source.answers)).await;
        let page = page.map_err(|_| Miss::Silence)?.map_err(Miss::Call)?;
        self.source = Some(source);
        Ok(page)
    }

    /// `None` is the end. A page may be empty: it says that the node is still looking.
    fn take(&mut self, page: Option<v1::ScanResponse>) -> Result<(), Error> {
        let Some(page) = page else {
            self.is_ended = true;
            return Ok(());
        };
        let bad = || Error::Failed(Detail::new(Reason::BAD_ANSWER, "the answer has no valid stamp"));
        for v1::ScanEntry { key, values, context } in page.entries {
            let read = read(values, context).ok_or_else(bad)?;
            self.page.push_back(Entry { key, read });
        }
        Ok(())
    }
}
