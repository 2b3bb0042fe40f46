//! Several operators over one Lease, on a clock that is paused.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Pod;
use keystore_operator_core::lease::{LOOKED_AT_EVERY, RENEWED_EVERY, TERM, WRITES_WITHIN};
use kube::api::DeleteParams;
use kube::{Api, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::fake_api::FakeApi;
use super::{Arc, Duration, Instant, Leadership, Metrics, Value, json};
use crate::lease::{LeaseKeeper, Lost};

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/keystore-operator";
const MOMENT: Duration = Duration::from_millis(100);

/// What an operator does with its Lease, and nothing else.
struct Operator {
    leadership: Leadership,
    metrics: Arc<Metrics>,
    is_reachable: Arc<AtomicBool>,
    stop: CancellationToken,
    /// `None`: told to stop.
    life: JoinHandle<Option<Lost>>,
}

impl Operator {
    fn start(api: &FakeApi, name: &str) -> Self {
        let (leadership, metrics) = (Leadership::default(), Arc::new(Metrics::new()));
        let is_reachable = Arc::new(AtomicBool::new(true));
        let reaches = is_reachable.clone();
        let client = api.ungated_client(move || reaches.load(Ordering::Acquire));
        let mut lease = LeaseKeeper::new(client, name.to_owned(), leadership.clone(), metrics.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let life = tokio::spawn(async move {
            if !lease.campaign(&stopped, || {}).await {
                return None;
            }
            tokio::select! {
                lost = lease.keep() => Some(lost),
                () = stopped.cancelled() => {
                    lease.release().await;
                    None
                }
            }
        });
        Self { leadership, metrics, is_reachable, stop, life }
    }

    fn leads(&self) -> bool {
        self.leadership.check().is_ok()
    }

    async fn until_it_leads(&self) -> Duration {
        let begun = Instant::now();
        while !self.leads() {
            assert!(begun.elapsed() < Duration::from_secs(600), "it never leads");
            sleep(MOMENT).await;
        }
        begun.elapsed()
    }

    /// Why it ended, which it does within a term.
    async fn end(self) -> Option<Lost> {
        timeout(TERM, self.life).await.expect("it ends").unwrap()
    }

    fn gauge(&self) -> bool {
        self.metrics.encode().unwrap().contains("keystore_operator_leader 1")
    }
}

fn holder(api: &FakeApi) -> Value {
    api.get(LEASE).unwrap()["spec"]["holderIdentity"].clone()
}

#[tokio::test(start_paused = true)]
async fn one_leads_for_as_long_as_it_lives_and_only_the_lease_is_written() {
    let api = FakeApi::default();
    let one = Operator::start(&api, "one");
    one.until_it_leads().await;
    let two = Operator::start(&api, "two");
    api.take_writes();
    for _ in 0..6_000 {
        sleep(MOMENT).await;
        assert!(one.leads() && !two.leads());
    }
    let writes = api.take_writes();
    assert!(writes.iter().all(|write| *write == format!("PUT {LEASE}")), "{writes:?}");
    let renewals = 600 / usize::try_from(RENEWED_EVERY.as_secs()).unwrap();
    assert!((renewals - 2..=renewals).contains(&writes.len()), "{} renewals", writes.len());
    assert_eq!((one.gauge(), two.gauge()), (true, false));
    let counted = one.metrics.encode().unwrap();
    assert!(counted.contains("keystore_operator_api_writes_total{kind=\"Lease\"}"), "{counted}");
}

#[tokio::test(start_paused = true)]
async fn of_many_that_start_together_one_leads() {
    let api = FakeApi::default();
    let all: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|name| Operator::start(&api, name)).collect();
    for _ in 0..600 {
        sleep(MOMENT).await;
        assert_eq!(all.iter().filter(|operator| operator.leads()).count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_is_cut_off_stops_before_another_one_begins() {
    let api = FakeApi::default();
    let one = Operator::start(&api, "one");
    one.until_it_leads().await;
    let two = Operator::start(&api, "two");
    sleep(Duration::from_secs(60)).await;
    one.is_reachable.store(false, Ordering::Release);
    let begun = Instant::now();
    while !two.leads() {
        assert!(begun.elapsed() < TERM + LOOKED_AT_EVERY * 2, "nobody takes over");
        assert!(!one.leads() || begun.elapsed() <= WRITES_WITHIN);
        sleep(MOMENT).await;
    }
    assert!(begun.elapsed() + RENEWED_EVERY >= TERM);
    assert_eq!((one.leads(), one.gauge(), two.gauge()), (false, false, true));
    assert_eq!(one.end().await, Some(Lost::Expired));
    assert_eq!(
        (holder(&api), api.get(LEASE).unwrap()["spec"]["leaseTransitions"].clone()),
        (json!("two"), json!(1))
    );
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_was_frozen_may_not_write_when_it_wakes() {
    let api = FakeApi::default();
    let leadership = Leadership::default();
    let client = api.ungated_client(|| true);
    let mut lease = LeaseKeeper::new(client, "one".into(), leadership.clone(), Arc::new(Metrics::new()));
    assert!(lease.campaign(&CancellationToken::new(), || {}).await);
    assert!(leadership.check().is_ok());
    // Nothing of it runs while another one takes over.
    let two = Operator::start(&api, "two");
    two.until_it_leads().await;
    assert!(leadership.check().is_err(), "before it has learned anything");
    let lost = timeout(TERM, lease.keep()).await.expect("it notices");
    assert!(matches!(lost, Lost::Expired | Lost::Taken { .. }));
    assert_eq!(holder(&api), json!("two"));
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_stops_gives_the_lease_back_and_the_next_one_begins_at_once() {
    let api = FakeApi::default();
    let one = Operator::start(&api, "one");
    one.until_it_leads().await;
    let two = Operator::start(&api, "two");
    sleep(Duration::from_secs(20)).await;
    one.stop.cancel();
    assert!(two.until_it_leads().await < LOOKED_AT_EVERY * 2);
    assert_eq!((one.leads(), one.gauge()), (false, false));
    assert_eq!(one.end().await, None);
    two.stop.cancel();
    assert_eq!(two.end().await, None);
    assert_eq!(holder(&api), Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_others_touch_or_delete_stays_with_its_holder() {
    let api = FakeApi::default();
    let one = Operator::start(&api, "one");
    one.until_it_leads().await;
    let two = Operator::start(&api, "two");
    sleep(Duration::from_secs(20)).await;
    for number in 0..20 {
        if number % 2 == 0 {
            api.edit(LEASE, |lease| lease["metadata"]["labels"] = json!({"touched": number.to_string()}));
        } else {
            api.remove(LEASE);
        }
        for _ in 0..50 {
            sleep(MOMENT).await;
            assert!(one.leads() && !two.leads(), "{number}");
        }
    }
    assert_eq!(holder(&api), json!("one"));
}

#[tokio::test(start_paused = true)]
async fn who_finds_another_name_in_its_lease_has_lost_it() {
    let api = FakeApi::default();
    let one = Operator::start(&api, "one");
    one.until_it_leads().await;
    api.edit(LEASE, |lease| lease["spec"]["holderIdentity"] = json!("somebody"));
    let leadership = one.leadership.clone();
    assert_eq!(one.end().await, Some(Lost::Taken { holder: "somebody".into() }));
    assert!(leadership.check().is_err());
    assert_eq!(holder(&api), json!("somebody"));
}

/// What the library sends again by itself would not have asked once more whether this process leads.
#[tokio::test]
async fn what_the_api_server_turns_away_is_not_sent_again_behind_the_gate() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = requests.clone();
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
            counted.fetch_add(1, Ordering::AcqRel);
            let busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            stream.write_all(busy).await.unwrap();
        }
    });
    let leadership = Leadership::default();
    leadership.extend(Instant::now() + Duration::from_secs(600));
    let pods: Api<Pod> = Api::namespaced(leadership.client(Config::new(url)).unwrap(), "shop");
    let params = DeleteParams::default();
    let deleted = timeout(Duration::from_secs(20), pods.delete("demo-0", &params)).await;
    assert!(deleted.expect("it is not tried for long").is_err());
    assert_eq!(requests.load(Ordering::Acquire), 1);
    server.abort();
}
