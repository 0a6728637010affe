//! Answers over HTTP/2 to clients that stop taking them.
//!
//! A client may open a window for the beginning of an answer and never again. The HTTP library then asks the body for
//! nothing, so the body can't end by itself, and holds its connection to the upstream. Here the body is given up after
//! [`TAKE_TIME`]; should the client come back, its stream is reset. What the library was given before, it holds for as long
//! as the stream lives: a connection on which a piece is held for minutes is closed.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::AbortOnDropHandle;

use super::TAKE_TIME;
use super::idle::Call;

/// Boxed error of a body.
type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// For how many spans of [`TAKE_TIME`] pieces of answers are counted apart. One that was there for two fewer is not waited
/// for; these are several, since a slow client may be sent all its streams at once.
const SPANS: usize = 6;
/// Longest piece, so that who takes a long answer slowly is seen to take it.
const PIECE: usize = 64 << 10;

/// The pieces of answers that one connection was given and has not sent.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// How many spans are over.
    now: AtomicUsize,
    /// How many pieces are held, by the span in which they came.
    pieces: [AtomicU32; SPANS],
}

impl Held {
    /// A piece that counts until it is dropped; until then its call runs.
    fn hold(self: &Arc<Self>, data: Bytes, call: Arc<Call>) -> Bytes {
        let span = self.now.load(Ordering::Relaxed) % SPANS;
        self.pieces[span].fetch_add(1, Ordering::Relaxed);
        Bytes::from_owner(Piece { data, span, held: self.clone(), _call: call })
    }

    /// Returns when a piece has been held for too long.
    pub(super) async fn too_long(&self) {
        loop {
            sleep(TAKE_TIME).await;
            let oldest = (self.now.fetch_add(1, Ordering::Relaxed) + 2) % SPANS;
            if self.pieces[oldest].load(Ordering::Relaxed) > 0 {
                return;
            }
        }
    }
}

/// A piece of an answer.
struct Piece {
    data: Bytes,
    span: usize,
    held: Arc<Held>,
    _call: Arc<Call>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.held.pieces[self.span].fetch_sub(1, Ordering::Relaxed);
    }
}

/// A body that is given up when nobody asks for more of it.
#[derive(Debug)]
pub(super) struct Patient<B> {
    shared: Arc<Mutex<Shared<B>>>,
    /// Who looks at the clock, until this is dropped; short answers are gone before that is worth it.
    watch: Option<AbortOnDropHandle<()>>,
    held: Arc<Held>,
    call: Arc<Call>,
}

#[derive(Debug)]
struct Shared<B> {
    /// `None` when it was given up.
    body: Option<B>,
    /// What it gave and nobody asked for yet.
    rest: Bytes,
    /// When the client had taken all it was given; `None` while more of it is awaited from the upstream.
    idle_since: Option<Instant>,
}

fn lock<B>(shared: &Mutex<Shared<B>>) -> MutexGuard<'_, Shared<B>> {
    // Nothing panics while it is held but the body itself, and then the answer is lost anyway.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<B: Send + 'static> Patient<B> {
    /// A body of the answer to this call, over this connection.
    pub(super) fn new(body: B, held: Arc<Held>, call: Call) -> Self {
        let shared = Arc::new(Mutex::new(Shared { body: Some(body), rest: Bytes::new(), idle_since: None }));
        Self { shared, watch: None, held, call: Arc::new(call) }
    }

    fn watch(&mut self) {
        if self.watch.is_none() {
            let watching = tokio::spawn(give_up_when_idle(Arc::downgrade(&self.shared)));
            self.watch = Some(AbortOnDropHandle::new(watching));
        }
    }
}

/// Ends when the body is given up.
async fn give_up_when_idle<B>(shared: Weak<Mutex<Shared<B>>>) {
    let mut next = Instant::now() + TAKE_TIME;
    loop {
        sleep_until(next).await;
        let Some(shared) = shared.upgrade() else { return };
        let mut shared = lock(&shared);
        let now = Instant::now();
        next = shared.idle_since.unwrap_or(now) + TAKE_TIME;
        if next <= now {
            (shared.body, shared.rest) = (None, Bytes::new());
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
        let mut guard = lock(&this.shared);
        let shared = &mut *guard;
        let Some(body) = &mut shared.body else {
            return Poll::Ready(Some(Err("the client took nothing for too long".into())));
        };
        let mut other = None;
        if shared.rest.is_empty() {
            shared.idle_since = None;
            let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(cx)).transpose()? else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => shared.rest = data,
                Err(trailers) => other = Some(trailers),
            }
        }
        let frame = other.unwrap_or_else(|| {
            let piece = shared.rest.split_to(shared.rest.len().min(PIECE));
            Frame::data(this.held.hold(piece, this.call.clone()))
        });
        let has_more = !shared.rest.is_empty() || !body.is_end_stream();
        shared.idle_since = has_more.then(Instant::now);
        drop(guard);
        if has_more {
            this.watch();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        shared.rest.is_empty() && shared.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        let (of_body, rest) = (shared.body.as_ref().map(Body::size_hint).unwrap_or_default(), shared.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, StreamBody};
    use tokio::sync::mpsc;

    use super::super::idle::Calls;
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

    fn patient<B: Send + 'static>(body: B) -> Patient<B> {
        Patient::new(body, Arc::default(), Calls::new().begin())
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_watches_an_answer_that_is_over() {
        let (sender, pieces) = mpsc::unbounded_channel();
        let mut patient = patient(body(pieces));
        sender.send("a").unwrap();
        patient.frame().await.unwrap().unwrap();
        let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
        assert_eq!(tasks(), 1);
        drop(patient);
        sleep(TAKE_TIME / 100).await;
        assert_eq!(tasks(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_runs_until_its_last_piece_is_sent() {
        let calls = Calls::new();
        let text = http_body_util::Full::new(Bytes::from("a")).map_err(Into::into);
        let mut patient = Patient::new(text, Arc::default(), calls.begin());
        let piece = patient.frame().await.unwrap().unwrap();
        drop(patient);
        let sent = async {
            sleep(TAKE_TIME * 2).await;
            drop(piece);
        };
        let start = Instant::now();
        tokio::join!(calls.none_for(TAKE_TIME), sent);
        assert_eq!(start.elapsed().as_secs(), TAKE_TIME.as_secs() * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_nobody_takes_is_given_up() {
        let (sender, pieces) = mpsc::unbounded_channel();
        let mut patient = patient(body(pieces));
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
        let mut patient = patient(body(pieces));
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

    #[tokio::test]
    async fn long_answers_go_in_pieces_and_lose_nothing() {
        let long: Bytes = (0..PIECE * 2 + 100).map(|at| at.to_le_bytes()[0]).collect();
        let mut patient = patient(http_body_util::Full::new(long.clone()).map_err(Into::into));
        let mut seen = Vec::new();
        while !patient.is_end_stream() {
            assert_eq!(patient.size_hint().exact(), Some((long.len() - seen.len()) as u64));
            let piece = patient.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE);
            seen.extend_from_slice(&piece);
        }
        assert!(seen == long);
        assert!(patient.frame().await.is_none());
    }
}
