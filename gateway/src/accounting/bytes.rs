//! Bytes of a call: counted as they pass, booked on its user's counters however the call ends.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use smallvec::SmallVec;
use tokio::task::JoinHandle;

use super::afterwards::Afterwards;
use crate::store::Store;

/// So many are booked before the end: calls that go on for hours count while they do.
const BOOKED_AT: u64 = 1 << 20;

/// Counters, with the second each ends at.
type Counters = SmallVec<[(Arc<str>, u64); 2]>;

/// Counts the bytes of one call. What is not booked when nobody holds it any more is booked then.
#[derive(Debug)]
pub struct Meter {
    counters: Counters,
    store: Arc<Store>,
    afterwards: Afterwards,
    bytes: AtomicU64,
}

impl Meter {
    pub(super) fn new(counters: Counters, store: Arc<Store>, afterwards: Afterwards) -> Self {
        Self { counters, store, afterwards, bytes: AtomicU64::default() }
    }

    /// Counts so many.
    pub fn add(&self, bytes: u64) {
        if self.bytes.fetch_add(bytes, Relaxed).saturating_add(bytes) >= BOOKED_AT {
            drop(self.book());
        }
    }

    /// Books what was counted so far, whether or not anyone waits for it. `None`: nothing was.
    pub fn book(&self) -> Option<JoinHandle<()>> {
        let bytes = self.bytes.swap(0, Relaxed);
        if bytes == 0 {
            return None;
        }
        let (store, counters) = (self.store.clone(), self.counters.clone());
        let booking = self.afterwards.run(async move { store.book(&counters, bytes).await });
        if booking.is_none() {
            tracing::error!(bytes, "bytes of a call are not counted: too many are to be");
        }
        booking
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        drop(self.book());
    }
}

/// How much of a request's body was read.
#[derive(Debug, Default)]
pub struct Read {
    bytes: AtomicU64,
    meter: Option<Arc<Meter>>,
}

impl Read {
    /// So far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

/// A client's body, whose bytes are counted as they are read.
#[derive(Debug)]
pub struct Received {
    inner: Incoming,
    /// `None`: there is nothing to read.
    read: Option<Arc<Read>>,
}

impl Received {
    /// A body whose bytes also count for this meter.
    pub fn new(inner: Incoming, meter: Option<Arc<Meter>>) -> Self {
        let read = (!inner.is_end_stream()).then(|| Arc::new(Read { bytes: AtomicU64::default(), meter }));
        Self { inner, read }
    }

    /// Where to look how much was read. `None`: there is nothing to read.
    pub fn read(&self) -> Option<&Arc<Read>> {
        self.read.as_ref()
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let (Some(Ok(frame)), Some(read)) = (&frame, &this.read) {
            let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
            read.bytes.fetch_add(bytes, Relaxed);
            if let Some(meter) = &read.meter {
                meter.add(bytes);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
