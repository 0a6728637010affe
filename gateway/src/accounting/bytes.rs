//! Bytes of a call: counted as they pass, booked on its user's counters however the call ends.

use std::{
    error::Error,
    io::{self, ErrorKind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use smallvec::SmallVec;
use tokio::task::JoinHandle;

use super::{Accounts, Allowance, UserLimits, afterwards::Afterwards};
use crate::{
    listen::ClientBody,
    store::{Store, now},
};

/// So many are booked before the end: calls that go on for hours count while they do.
const BOOKED_AT: u64 = 1 << 20;

/// Counts the bytes of one call. What is not booked when nobody holds it any more is booked then.
#[derive(Debug)]
pub struct Meter {
    allowances: SmallVec<[Allowance; 2]>,
    store: Arc<Store>,
    afterwards: Afterwards,
    bytes: AtomicU64,
}

impl Accounts {
    /// Counts the bytes of a call of the user with these limits, if they are limited. `is_own`: of an API that asks who
    /// calls.
    pub fn meter(&self, limits: &UserLimits, is_own: bool) -> Option<Arc<Meter>> {
        let own = limits.bandwidth.iter().filter(|_| is_own);
        let allowances: SmallVec<_> = own.chain(&limits.tier.bandwidth).cloned().collect();
        if allowances.is_empty() {
            return None;
        }
        let (store, afterwards) = (self.store.clone(), self.afterwards.clone());
        Some(Arc::new(Meter { allowances, store, afterwards, bytes: AtomicU64::default() }))
    }
}

impl Meter {
    /// Counts so many.
    pub fn add(&self, bytes: u64) {
        if self.bytes.fetch_add(bytes, Relaxed).saturating_add(bytes) >= BOOKED_AT {
            drop(self.book());
        }
    }

    /// Books what was counted since the last time on the present stretch of the calendar, whether or not anyone waits for
    /// it. `None`: nothing was.
    pub fn book(&self) -> Option<JoinHandle<()>> {
        let bytes = self.bytes.swap(0, Relaxed);
        if bytes == 0 {
            return None;
        }
        let (store, now) = (self.store.clone(), now());
        let counters: SmallVec<[_; 2]> = self.allowances.iter().map(|allowance| allowance.booked(now)).collect();
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
#[derive(Debug)]
pub struct Read {
    bytes: AtomicU64,
    is_cut_off: AtomicBool,
    meter: Option<Arc<Meter>>,
}

impl Read {
    /// So far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Did the client go away before the end of it?
    pub fn is_cut_off(&self) -> bool {
        self.is_cut_off.load(Relaxed)
    }

    fn note(&self, frame: &Result<Frame<Bytes>, hyper::Error>) {
        match frame {
            Ok(frame) => {
                let bytes = length(frame);
                self.bytes.fetch_add(bytes, Relaxed);
                if let Some(meter) = &self.meter {
                    meter.add(bytes);
                }
            }
            Err(error) => {
                let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
                // Other causes are that what came is no body.
                let is_cut_off = matches!(cause, Some(ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset));
                self.is_cut_off.store(is_cut_off, Relaxed);
            }
        }
    }
}

/// Bytes of data in a frame.
pub fn length(frame: &Frame<Bytes>) -> u64 {
    frame.data_ref().map_or(0, |data| data.len() as u64)
}

/// A client's body, whose bytes are counted as they are read.
#[derive(Debug)]
pub struct Received {
    inner: ClientBody,
    /// `None`: there is nothing to read.
    read: Option<Arc<Read>>,
}

impl Received {
    /// A body whose bytes also count for this meter.
    pub fn new(inner: ClientBody, meter: Option<Arc<Meter>>) -> Self {
        let read = || Arc::new(Read { bytes: AtomicU64::default(), is_cut_off: AtomicBool::default(), meter });
        Self { read: (!inner.is_end_stream()).then(read), inner }
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
        if let (Some(frame), Some(read)) = (&frame, &this.read) {
            read.note(frame);
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
