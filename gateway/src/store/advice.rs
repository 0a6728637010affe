//! A failure at a start, with the settings to look at, for the person who wrote them.

use std::{error::Error, fmt};

/// An error, and what it may come from.
#[derive(Debug)]
pub(super) struct Advised<E> {
    cause: E,
    advice: Option<&'static str>,
}

impl<E> Advised<E> {
    pub(super) fn new(cause: E, advice: Option<&'static str>) -> Self {
        Self { cause, advice }
    }
}

impl<E: fmt::Display> fmt::Display for Advised<E> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.advice {
            Some(advice) => write!(out, "{}; {advice}", self.cause),
            None => self.cause.fmt(out),
        }
    }
}

impl<E: Error> Error for Advised<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.source()
    }
}
