//! Pools in virtual time: random delays, lost messages, stalled watches, partitions, crashes, restarts and drains. At no
//! moment may two pods run the node of one identity; once the network is well again, exactly one does.

mod model;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use self::model::{Answer, Message, Placement, Pod, Purpose, Request, Seen, Sent};
use crate::member::{LeaseReading, Members, OwnLease, Step};
use crate::reconcile::{Action, Host, Running, Stage, View, decide};

const IDENTITY: &str = "ts-nginx-abcde";
const PODS: [&str; 3] = ["pool-0", "pool-1", "pool-2"];
const TICK: u64 = 20;
/// As in the shells.
const REQUEST_TIMEOUT: u64 = 500;
const SHUTDOWN: u64 = 500;

struct World {
    now: u64,
    base: Instant,
    rng: StdRng,
    pods: Vec<Option<Pod>>,
    leases: BTreeMap<usize, LeaseReading>,
    identity: Placement,
    version: u64,
    requests: u64,
    lives: u64,
    mail: VecDeque<(u64, Message)>,
    /// Share of messages lost and longest delay, now.
    weather: (f64, u64),
    cut: [bool; PODS.len()],
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            now: 0,
            base: Instant::now(),
            rng: StdRng::seed_from_u64(seed),
            pods: (0..PODS.len()).map(|_| None).collect(),
            leases: BTreeMap::new(),
            identity: Placement {
                version: 1,
                ..Placement::default()
            },
            version: 1,
            requests: 0,
            lives: 0,
            mail: VecDeque::new(),
            weather: (0.0, 40),
            cut: [false; PODS.len()],
        };
        for pod in 0..PODS.len() {
            world.start(pod, true);
        }
        world
    }

    fn at(&self, ms: u64) -> Instant {
        self.base + Duration::from_millis(ms)
    }

    fn start(&mut self, index: usize, new_pod: bool) {
        self.lives += 1;
        let uid = match &self.pods[index] {
            Some(pod) if !new_pod => pod.uid.clone(),
            _ => format!("{}-{}", PODS[index], self.lives),
        };
        let mut others = Members::default();
        for (member, lease) in self.leases.iter().filter(|(member, _)| **member != index) {
            others.observe(PODS[*member], lease.clone(), self.at(self.now));
        }
        self.pods[index] = Some(Pod {
            life: self.lives,
            own: OwnLease::new(&uid),
            uid,
            others,
            cached: self.identity.clone(),
            cached_at: self.at(self.now),
            sent: Vec::new(),
            running: None,
            claim: String::new(),
            node_until: 0,
            release_after: false,
            draining: false,
            told: false,
            watch_due: self.now,
        });
    }

    /// One random misfortune or none.
    fn trouble(&mut self) {
        let pod = self.rng.gen_range(0..PODS.len());
        match self.rng.gen_range(0..400) {
            0 => self.weather = (self.rng.gen_range(0.0..0.4), self.rng.gen_range(10..1500)),
            1 => self.weather = (0.0, 40),
            2..=4 => self.cut[pod] = !self.cut[pod],
            5 => self.pods[pod] = None,
            6 => self.start(pod, false),
            7 => self.start(pod, true),
            8 => {
                if let Some(pod) = &mut self.pods[pod] {
                    pod.draining = true;
                    let now = self.base + Duration::from_millis(self.now);
                    pod.own.hurry(now);
                }
            }
            9 => {
                if let Some(pod) = &mut self.pods[pod] {
                    pod.watch_due = self.now + self.rng.gen_range(0..20_000);
                }
            }
            _ => {}
        }
    }

    fn post(&mut self, pod: usize, message: Message) {
        let lost = self.cut[pod] || self.rng.gen_bool(self.weather.0);
        // What the network holds back may still arrive much later.
        let delay = if lost && self.rng.gen_bool(0.5) {
            self.rng.gen_range(1000..9000)
        } else if lost {
            return;
        } else {
            self.rng.gen_range(1..=self.weather.1)
        };
        self.mail.push_back((self.now + delay, message));
    }

    fn send(&mut self, index: usize, purpose: Purpose, request: Request) {
        self.requests += 1;
        let (id, now) = (self.requests, self.now);
        let Some(pod) = &mut self.pods[index] else { return };
        pod.sent.push(Sent {
            id,
            at: now,
            purpose,
            telling: pod.draining,
        });
        let life = pod.life;
        self.post(
            index,
            Message::ToServer {
                pod: index,
                life,
                id,
                purpose,
                request,
            },
        );
    }

    /// What the API server does with a request.
    fn serve(&mut self, pod: usize, request: Request) -> Answer {
        match request {
            Request::ReadLease(of) => Answer::Lease(of, self.leases.get(&of).cloned()),
            Request::ReadIdentity => Answer::Identity(self.identity.clone()),
            Request::WriteLease {
                version,
                holder,
                draining,
            } => {
                let known = self.leases.get(&pod).map(|lease| lease.version.clone());
                if known != version.map(|version| version.to_string()) {
                    return Answer::Conflict;
                }
                self.version += 1;
                let lease = LeaseReading {
                    holder,
                    version: self.version.to_string(),
                    willing: !draining,
                };
                self.leases.insert(pod, lease.clone());
                self.tell_all(&Seen::Lease(pod, lease.clone()));
                Answer::Lease(pod, Some(lease))
            }
            Request::WriteHost { version, host, claim } => {
                if self.identity.version != version {
                    return Answer::Conflict;
                }
                if (self.identity.host, &self.identity.claim) != (host, &claim) {
                    self.version += 1;
                    self.identity = Placement {
                        host,
                        claim,
                        version: self.version,
                    };
                    self.tell_all(&Seen::Identity(self.identity.clone()));
                }
                Answer::Identity(self.identity.clone())
            }
        }
    }

    /// Watches bring everything in order, but late.
    fn tell_all(&mut self, seen: &Seen) {
        for (index, pod) in self.pods.iter_mut().enumerate() {
            let Some(pod) = pod else { continue };
            let delay = self.rng.gen_range(1..=self.weather.1);
            let extra = if self.cut[index] { 5000 } else { 0 };
            pod.watch_due = pod.watch_due.max(self.now + delay + extra);
            let message = Message::Watch {
                pod: index,
                life: pod.life,
                seen: seen.clone(),
            };
            self.mail.push_back((pod.watch_due, message));
        }
    }

    fn deliver(&mut self) {
        let mut due: Vec<(u64, Message)> = Vec::new();
        let mut later = VecDeque::new();
        for (at, message) in std::mem::take(&mut self.mail) {
            if at <= self.now {
                due.push((at, message));
            } else {
                later.push_back((at, message));
            }
        }
        self.mail = later;
        due.sort_by_key(|(at, _)| *at);
        for (_, message) in due {
            match message {
                Message::ToServer {
                    pod,
                    life,
                    id,
                    purpose,
                    request,
                } => {
                    let answer = self.serve(pod, request);
                    self.post(
                        pod,
                        Message::ToPod {
                            pod,
                            life,
                            id,
                            purpose,
                            answer,
                        },
                    );
                }
                Message::ToPod {
                    pod,
                    life,
                    id,
                    purpose,
                    answer,
                } => self.answered(pod, life, id, purpose, answer),
                Message::Watch { pod, life, seen } => self.watched(pod, life, seen),
            }
        }
    }

    fn watched(&mut self, index: usize, life: u64, seen: Seen) {
        let now = self.at(self.now);
        let Some(pod) = self.pods[index].as_mut().filter(|pod| pod.life == life) else {
            return;
        };
        match seen {
            Seen::Lease(member, lease) if member != index => {
                pod.others.observe(PODS[member], lease, now);
            }
            Seen::Lease(..) => {}
            Seen::Identity(placement) => pod.cache(placement, now),
        }
    }

    fn answered(&mut self, index: usize, life: u64, id: u64, purpose: Purpose, answer: Answer) {
        let now = self.at(self.now);
        let base = self.base;
        let Some(pod) = self.pods[index].as_mut().filter(|pod| pod.life == life) else {
            return;
        };
        // An answer after the time-out is nobody's.
        let Some(place) = pod.sent.iter().position(|sent| sent.id == id) else {
            return;
        };
        let sent = pod.sent.remove(place);
        let sent_at = base + Duration::from_millis(sent.at);
        match (purpose, answer) {
            (Purpose::WriteOwn, Answer::Lease(_, Some(lease))) => {
                pod.told |= sent.telling;
                pod.own.handle_written(lease.version, sent_at, now);
            }
            (Purpose::ReadOwn, Answer::Lease(_, read)) => pod.own.handle_read(read, sent_at, now),
            (Purpose::ReadOwn | Purpose::WriteOwn, _) => pod.own.handle_failed(now),
            (Purpose::Confirm, Answer::Lease(member, read)) => {
                pod.others.confirm(PODS[member], read, sent_at, now);
            }
            (Purpose::Claim, Answer::Identity(placement)) => {
                let claim = placement.claim.clone();
                pod.cache(placement, now);
                let tenure = pod.own.tenure(now);
                if let Some(running) = &mut pod.running
                    && running.stage == Stage::Claiming
                    && tenure.as_ref() == Some(&running.tenure)
                    && claim.as_deref() == Some(&*pod.claim)
                {
                    running.stage = Stage::Claimed;
                    pod.node_until = u64::MAX;
                } else {
                    pod.running = None;
                }
            }
            (Purpose::Claim, _) => {
                pod.running = None;
                self.send(index, Purpose::Release, Request::ReadIdentity);
            }
            (Purpose::Release, Answer::Identity(placement)) => {
                pod.cache(placement, now);
                pod.leave();
            }
            (Purpose::Release, _) => {
                pod.leave();
                self.send(index, Purpose::Release, Request::ReadIdentity);
            }
            (Purpose::Confirm, _) => {}
        }
    }

    /// What a pod does at a tick.
    fn act(&mut self, index: usize) {
        let (now, now_ms) = (self.at(self.now), self.now);
        let Some(pod) = &mut self.pods[index] else { return };
        let timed_out: Vec<Sent> = pod
            .sent
            .extract_if(.., |sent| now_ms >= sent.at + REQUEST_TIMEOUT)
            .collect();
        for sent in timed_out {
            match sent.purpose {
                Purpose::ReadOwn | Purpose::WriteOwn => pod.own.handle_failed(now),
                Purpose::Claim => pod.running = None,
                Purpose::Release => pod.leave(),
                Purpose::Confirm => {}
            }
        }
        let busy = |purpose| pod.sent.iter().any(|sent| sent.purpose == purpose);
        let (own, confirm, status) = (
            busy(Purpose::ReadOwn) || busy(Purpose::WriteOwn),
            busy(Purpose::Confirm),
            busy(Purpose::Claim) || busy(Purpose::Release),
        );
        let step = pod.own.poll(now);
        let suspect = pod.others.suspects(now).first().cloned();
        let (uid, draining) = (pod.uid.clone(), pod.draining);
        if !own {
            let write = |version| Request::WriteLease {
                version,
                holder: Some(uid.clone()),
                draining,
            };
            match step {
                Step::Read => self.send(index, Purpose::ReadOwn, Request::ReadLease(index)),
                Step::Create => self.send(index, Purpose::WriteOwn, write(None)),
                Step::Renew { version } => self.send(index, Purpose::WriteOwn, write(version.parse().ok())),
                Step::Wait(_) => {}
            }
        }
        if let Some(suspect) = suspect.filter(|_| !confirm) {
            let member = PODS.iter().position(|pod| *pod == suspect).unwrap();
            self.send(index, Purpose::Confirm, Request::ReadLease(member));
        }
        self.reconcile(index, status);
    }

    fn reconcile(&mut self, index: usize, status_busy: bool) {
        let (now, now_ms) = (self.at(self.now), self.now);
        let Some(pod) = &mut self.pods[index] else { return };
        let tenure = pod.own.tenure(now);
        let mut candidates = pod.others.candidates();
        if tenure.is_some() && !pod.told {
            candidates.insert(PODS[index].to_owned());
        }
        let view = View {
            tenure,
            candidates,
            dead: pod.others.dead(),
        };
        let host = pod.cached.host.map(|host| Host {
            pod: PODS[host],
            since: pod.cached_at,
        });
        let end = now_ms + self.rng.gen_range(0..SHUTDOWN);
        match decide(PODS[index], IDENTITY, host, pod.running.as_ref(), &view) {
            Action::Nothing => {}
            Action::Inquire => pod.others.inquire(host.unwrap().pod, now),
            Action::Start if status_busy || now_ms < pod.node_until => {}
            Action::Start => {
                let tenure = view.tenure.unwrap();
                pod.claim = format!("{}.{}", tenure.as_str(), self.requests);
                let claim = Some(pod.claim.clone());
                pod.running = Some(Running {
                    tenure,
                    stage: Stage::Claiming,
                });
                let version = pod.cached.version;
                self.send(
                    index,
                    Purpose::Claim,
                    Request::WriteHost {
                        version,
                        host: Some(index),
                        claim,
                    },
                );
                return;
            }
            action @ (Action::HandOver | Action::Stop) => {
                pod.node_until = pod.node_until.min(end);
                pod.release_after = action == Action::HandOver;
                if let Some(running) = &mut pod.running {
                    running.stage = Stage::Leaving;
                }
            }
            Action::Disown if !status_busy && now_ms >= pod.node_until => {
                let version = pod.cached.version;
                self.send(
                    index,
                    Purpose::Release,
                    Request::WriteHost {
                        version,
                        host: None,
                        claim: None,
                    },
                );
                return;
            }
            Action::Disown => {}
        }
        let Some(pod) = &mut self.pods[index] else { return };
        let leaving = pod
            .running
            .as_ref()
            .is_some_and(|running| running.stage == Stage::Leaving);
        if leaving && now_ms >= pod.node_until && !status_busy {
            if pod.release_after && pod.cached.host == Some(index) {
                let version = pod.cached.version;
                self.send(
                    index,
                    Purpose::Release,
                    Request::WriteHost {
                        version,
                        host: None,
                        claim: None,
                    },
                );
            } else {
                pod.leave();
            }
        }
    }

    fn tick(&mut self) {
        self.now += TICK;
        self.deliver();
        for index in 0..PODS.len() {
            self.act(index);
        }
    }

    /// The pods on which the node of the identity runs.
    fn hosts(&self) -> Vec<usize> {
        let runs = |pod: &Pod| pod.node_until > self.now;
        (0..PODS.len())
            .filter(|index| self.pods[*index].as_ref().is_some_and(runs))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn one_node_runs_at_a_time(seed in any::<u64>()) {
        let mut world = World::new(seed);
        while world.now < 90_000 {
            world.trouble();
            world.tick();
            prop_assert!(world.hosts().len() <= 1, "{:?} host at {} ms", world.hosts(), world.now);
        }
        world.weather = (0.0, 40);
        world.cut = [false; PODS.len()];
        for index in 0..PODS.len() {
            world.start(index, false);
        }
        while world.now < 130_000 {
            world.tick();
            prop_assert!(world.hosts().len() <= 1, "{:?} host at {} ms", world.hosts(), world.now);
        }
        prop_assert_eq!(world.hosts().len(), 1);
    }
}
