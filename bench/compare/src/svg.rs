//! Bars with their spread, as SVG: one group for each cell, one bar for each peer.

use crate::results::Spread;

pub(crate) struct Group {
    pub(crate) label: String,
    pub(crate) bars: Vec<(String, Spread)>,
}

const LEFT: f64 = 190.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 16.0;
const COLOURS: &[&str] =
    &["#7f7f7f", "#d62728", "#ff9896", "#1f77b4", "#aec7e8", "#2ca02c", "#98df8a", "#9467bd", "#8c564b", "#e377c2"];

/// `peers` fixes the colours, so that a peer looks the same in every plot. The scale is logarithmic: figures of peers
/// lie decades apart.
pub(crate) fn bars(title: &str, unit: &str, peers: &[&str], groups: &[Group]) -> String {
    let values = || groups.iter().flat_map(|group| group.bars.iter().map(|(_, spread)| spread));
    let least = values().map(|spread| spread.min).filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
    let greatest = values().map(|spread| spread.max).fold(0.0, f64::max);
    let (low, high) = (least.log10().floor(), greatest.log10().ceil().max(least.log10().floor() + 1.0));
    let x = |value: f64| LEFT + WIDTH * ((value.max(least).log10() - low) / (high - low)).clamp(0.0, 1.0);
    let bars = groups.iter().map(|group| group.bars.len()).sum::<usize>() as f64;
    let height = 60.0 + bars * BAR + groups.len() as f64 * 26.0;

    let mut body = String::new();
    let mut decade = low;
    while decade <= high {
        let at = LEFT + WIDTH * (decade - low) / (high - low);
        body += &format!("<line x1=\"{at:.1}\" y1=\"40\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>", height - 14.0);
        body += &format!(
            "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            height - 2.0,
            short(10_f64.powf(decade))
        );
        decade += 1.0;
    }
    let mut y = 44.0;
    for group in groups {
        body += &format!("<text x=\"4\" y=\"{:.1}\" font-weight=\"bold\">{}</text>\n", y + 14.0, group.label);
        y += 20.0;
        for (peer, spread) in &group.bars {
            let place = peers.iter().position(|name| name == peer).unwrap_or_default();
            let colour = COLOURS[place % COLOURS.len()];
            let (end, middle) = (x(spread.median), y + BAR / 2.0);
            body += &format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{peer}</text>\
                 <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
                 <line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" stroke=\"#000\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\">{}</text>\n",
                LEFT - 6.0,
                y + 12.0,
                y + 2.0,
                end - LEFT,
                BAR - 4.0,
                x(spread.min),
                x(spread.max),
                x(spread.max) + 5.0,
                y + 12.0,
                short(spread.median)
            );
            y += BAR;
        }
        y += 6.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"820\" height=\"{height:.0}\" font-family=\"sans-serif\" \
         font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"4\" y=\"18\" font-size=\"14\">{title}</text><text x=\"4\" y=\"33\">{unit}; bar: median, line: least \
         to greatest; logarithmic</text>\n{body}</svg>\n"
    )
}

/// A number in four characters or so.
pub(crate) fn short(value: f64) -> String {
    let (value, suffix) = match value.abs() {
        large if large >= 999_500.0 => (value / 1e6, " M"),
        large if large >= 9_999.5 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        large if large >= 99.95 => 0,
        large if large >= 9.995 => 1,
        large if large >= 0.0995 || large == 0.0 => 2,
        _ => 4,
    };
    format!("{value:.digits$}{suffix}")
}
