//! Answers over HTTP/2 to clients that stop taking them.
//!
//! A client may open a window for the beginning of an answer and never again. The HTTP library then asks the body for
//! nothing, so the body can't end by itself, and holds its connection to the upstream. Here the body is given up after
//! [`TAKE_TIME`]; should the client come back, its stream is reset. The end of an answer is held by the library alone, and
//! no stream is left to reset: of a client that does not take it the connection is closed, after some minutes.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep, sleep_until};

use super::TAKE_TIME;

/// Boxed error of a body.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// For how many spans of [`TAKE_TIME`] the ends of answers are counted apart. One that was there for two fewer is not waited
/// for; these are several, since a slow client may have all its streams end at once.
const SPANS: usize = 6;

/// The ends of answers that one connection holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How many spans are over.
    now: AtomicUsize,
    /// How many ends are held, by the span in which they came.
    ends: [AtomicU32; SPANS],
}

impl Held {
    /// The end of an answer, which counts until it is dropped.
    fn hold(self: &Arc<Self>, data: Bytes) -> Bytes {
        let span = self.now.load(Ordering::Relaxed) % SPANS;
        self.ends[span].fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(End { data, span, held: self.clone() })
    }

    /// Returns when an end has been held for too long.
    pub(super) async fn too_long(&self) {
        loop {
            sleep(TAKE_TIME).await;
            let oldest = (self.now.fetch_add(1, Ordering::Relaxed) + 2) % SPANS;
            if self.ends[oldest].load(Ordering::Relaxed) > 0 {
                return;
            }
        }
    }
}

/// The end of an answer.
struct End {
    data: Bytes,
    span: usize,
    held: Arc<Held>,
}

impl AsRef<[u8]> for End {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.held.ends[self.span].fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that is given up when nobody asks for more of it.
#[derive(Debug)]
pub(super) struct Patient<B> {
    shared: Arc<Mutex<Shared<B>>>,
    /// Whether somebody looks at the clock; short answers are gone before that is worth it.
    is_watched: bool,
    held: Arc<Held>,
}

#[derive(Debug)]
struct Shared<B> {
    /// `None` when it was given up.
    body: Option<B>,
    /// When the client had taken all it was given; `None` while more of it is awaited from the upstream.
    idle_since: Option<Instant>,
}

fn lock<B>(shared: &Mutex<Shared<B>>) -> MutexGuard<'_, Shared<B>> {
    // Nothing panics while it is held but the body itself, and then the answer is lost anyway.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Send + 'static> Patient<B> {
    /// A body of an answer over this connection.
    pub(super) fn new(body: B, held: Arc<Held>) -> Self {
        let shared = Arc::new(Mutex::new(Shared { body: Some(body), idle_since: None }));
        Self { shared, is_watched: false, held }
    }

    fn watch(&mut self) {
        if !self.is_watched {
            self.is_watched = true;
            tokio::spawn(give_up_when_idle(Arc::downgrade(&self.shared)));
        }
    }
}

/// Ends with the body, at the latest [`TAKE_TIME`] after it.
async fn give_up_when_idle<B>(shared: Weak<Mutex<Shared<B>>>) {
    let mut next = Instant::now() + TAKE_TIME;
    loop {
        sleep_until(next).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut shared = lock(&shared);
        let now = Instant::now();
        next = shared.idle_since.unwrap_or(now) + TAKE_TIME;
        if next <= now {
            shared.body = None;
            tracing::info!("a client takes nothing of its answer; it is given up");
            return;
        }
    }
}

impl<B> Body for Patient<B>
where
    B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut shared = lock(&this.shared);
        let Some(body) = &mut shared.body else {
            return Poll::Ready(Some(Err("the client took nothing for too long".into())));
        };
        let polled = Pin::new(&mut *body).poll_frame(cx);
        let has_more = polled.is_ready() && !body.is_end_stream();
        shared.idle_since = has_more.then(Instant::now);
        drop(shared);
        if has_more {
            this.watch();
            return polled;
        }
        polled.map_ok(|frame| frame.map_data(|data| this.held.hold(data)))
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.shared).body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.shared).body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    type Pieces = mpsc::UnboundedReceiver<&'static str>;

    /// A body of the pieces that are sent, which tells by closing the channel when it is dropped.
    fn body(pieces: Pieces) -> impl Body<Data = Bytes, Error = BodyError> + Send + Unpin {
        let frames = futures::stream::unfold(pieces, |mut pieces| async {
            let piece = pieces.recv().await?;
            Some((Ok(Frame::data(Bytes::from(piece))), pieces))
        });
        StreamBody::new(Box::pin(frames))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_nobody_takes_is_given_up() {
        let (sender, pieces) = mpsc::unbounded_channel();
        let mut patient = Patient::new(body(pieces), Arc::default());
        sender.send("a").unwrap();
        patient.frame().await.unwrap().unwrap();
        let start = Instant::now();
        sender.closed().await;
        assert!((TAKE_TIME..TAKE_TIME * 2).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert!(patient.frame().await.unwrap().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_and_a_slow_upstream_have_their_time() {
        let (sender, pieces) = mpsc::unbounded_channel();
        let mut patient = Patient::new(body(pieces), Arc::default());
        for _ in 0..5 {
            sender.send("a").unwrap();
            patient.frame().await.unwrap().unwrap();
            tokio::time::sleep(TAKE_TIME / 2).await;
        }
        let upstream = async {
            tokio::time::sleep(TAKE_TIME * 3).await;
            sender.send("b").unwrap();
        };
        let (frame, ()) = tokio::join!(patient.frame(), upstream);
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "b");
        drop(sender);
        assert!(patient.frame().await.is_none());
    }
}
