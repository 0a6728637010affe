//! Listens to what the pods say they serve: one long answer per pod, a line for each change.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, Bytes, BytesMut};
use doorman_crds::revision::RevisionReport;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::world::Event;

/// Longest wait for a connection and for the head of the answer.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest silence; a pod says something every ten seconds.
const SILENCE: Duration = Duration::from_secs(25);
/// Longest line.
const MAX_LINE: usize = 1 << 20;
/// Pauses between tries.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// The pods listened to.
#[derive(Debug)]
pub struct Fleet {
    events: mpsc::Sender<Event>,
    pods: HashMap<String, (SocketAddr, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Listens to nobody; what is heard goes to `events`.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self { events, pods: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Listens to these pods and no others: address of the admin port by uid.
    pub fn listen_to(&mut self, wanted: HashMap<String, SocketAddr>) {
        self.pods.retain(|uid, (address, task)| {
            let stays = wanted.get(uid) == Some(address);
            if !stays {
                task.abort();
            }
            stays
        });
        for (uid, address) in wanted {
            if !self.pods.contains_key(&uid) {
                let task = self.tasks.spawn(follow(uid.clone(), address, self.events.clone()));
                self.pods.insert(uid, (address, task));
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }
}

async fn follow(uid: String, address: SocketAddr, events: mpsc::Sender<Event>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let mut is_heard = false;
        let end = listen(address, |report| {
            is_heard = true;
            events.send(Event::Report(uid.clone(), Box::new(report)))
        });
        if let Err(error) = end.await {
            tracing::debug!(pod = uid, %address, "no word: {error:#}");
        }
        if is_heard {
            pause = FIRST_PAUSE;
        }
        if events.send(Event::Silent(uid.clone())).await.is_err() {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Hands over every report until the answer ends.
async fn listen<F>(address: SocketAddr, mut hand_over: impl FnMut(RevisionReport) -> F) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), mpsc::error::SendError<Event>>>,
{
    let ask = async {
        let stream = TcpStream::connect(address).await.context("connect")?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("handshake")?;
        // Ends with the connection, which ends when `sender` and the answer are dropped.
        tokio::spawn(connection);
        let request = Request::get("/revision?watch=true").header("host", address.to_string());
        let answer = sender.send_request(request.body(Empty::<Bytes>::new())?).await.context("request")?;
        anyhow::Ok((sender, answer))
    };
    let (_sender, answer) = timeout(CONNECT, ask).await.context("no answer in time")??;
    if answer.status() != StatusCode::OK {
        bail!("the answer is {}", answer.status());
    }
    let mut body = answer.into_body();
    let mut buffer = BytesMut::new();
    while let Some(frame) = timeout(SILENCE, body.frame()).await.context("silence")? {
        if let Ok(data) = frame.context("read")?.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some(end) = memchr::memchr(b'\n', &buffer) {
            let line = buffer.split_to(end);
            buffer.advance(1);
            hand_over(serde_json::from_slice(&line).context("a line")?).await?;
        }
        if buffer.len() > MAX_LINE {
            bail!("a line of more than {MAX_LINE} bytes");
        }
    }
    Ok(())
}
