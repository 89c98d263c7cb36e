//! Pictures: a small room for drawing SVG by hand.
//!
//! Made for one purpose: to be read at the width of a README, in black and
//! white as well as in colour, by people who see few colours. Colours are
//! those of Okabe and Ito, text is text, every mark that is told apart by
//! colour is told apart by place or word, too.
//!
//! Pure: values go in, text comes out.

pub mod bars;
pub mod latency;
pub mod lines;
pub mod scale;
pub mod scatter;
pub mod strip;
mod svg;
pub mod theme;

pub use svg::Svg;
