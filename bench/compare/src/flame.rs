//! Where a process spends its time, as a picture: what `perf script` prints, drawn as a flame graph (the idea is Brendan
//! Gregg's). A box is a function, as wide as its share of the samples; it stands on the one that called it.

use std::collections::BTreeMap;

const WIDTH: f64 = 1200.0;
const ROW: f64 = 16.0;
const TOP: f64 = 24.0;
/// Narrower boxes are left out.
const NARROWEST: f64 = 0.8;
/// About the width of a letter.
const LETTER: f64 = 6.3;

#[derive(Default)]
struct Node {
    samples: u64,
    kind: Kind,
    callees: BTreeMap<String, Node>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    #[default]
    Thread,
    Program,
    Library,
    Kernel,
}

impl Kind {
    fn of(file: &str) -> Self {
        match file {
            "[kernel.kallsyms]" | "[kernel]" => Self::Kernel,
            file if file.contains(".so") || file.starts_with('[') => Self::Library,
            _ => Self::Program,
        }
    }

    fn colour(self) -> &'static str {
        match self {
            Self::Thread => "#c7c7c7",
            Self::Program => "#aec7e8",
            Self::Library => "#dbdb8d",
            Self::Kernel => "#ffbb78",
        }
    }
}

/// The graph of what `perf script` has printed.
pub(crate) fn graph(title: &str, script: &str) -> Result<String, String> {
    let root = collect(script);
    if root.samples == 0 {
        return Err("no sample: this is not what `perf script` prints".to_owned());
    }
    let depth = depth(&root, WIDTH / root.samples as f64);
    let height = TOP + ROW * depth as f64 + 4.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"monospace\" font-size=\"10.5\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"4\" y=\"15\" font-size=\"12\">{}: {} samples; blue the program, yellow libraries, orange the \
         kernel</text>\n",
        escape(title),
        root.samples
    );
    draw(&root, &root, 0.0, height - 4.0, &mut svg);
    svg += "</svg>\n";
    Ok(svg)
}

/// A tree of calls: below the root threads, below them what was called.
fn collect(script: &str) -> Node {
    let mut root = Node::default();
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let Some(head) = lines.next() else { continue };
        // `name 123 456.789:   1000 cpu-clock:`; numbers of threads of a pool say nothing.
        let thread =
            head.split_whitespace().next().unwrap_or("?").trim_end_matches(|letter: char| letter.is_ascii_digit());
        let mut frames: Vec<_> = lines.filter_map(frame).collect();
        frames.push((thread.trim_end_matches('-').to_owned(), Kind::Thread));
        root.samples += 1;
        let mut node = &mut root;
        for (name, kind) in frames.into_iter().rev() {
            node = node.callees.entry(name).or_default();
            node.kind = kind;
            node.samples += 1;
        }
    }
    root
}

/// `   6dd2bb some::function+0x6eb (/some/file)`.
fn frame(line: &str) -> Option<(String, Kind)> {
    let (_, rest) = line.trim().split_once(' ')?;
    let (symbol, file) = rest.rsplit_once(" (")?;
    let symbol = symbol.rsplit_once("+0x").map_or(symbol, |(symbol, _)| symbol);
    // A hash ends a mangled name.
    let symbol = match symbol.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => name,
        _ => symbol,
    };
    Some((symbol.to_owned(), Kind::of(file.trim_end_matches(')'))))
}

fn depth(node: &Node, scale: f64) -> usize {
    let wide = node.callees.values().filter(|callee| callee.samples as f64 * scale >= NARROWEST);
    wide.map(|callee| 1 + depth(callee, scale)).max().unwrap_or(0)
}

fn draw(root: &Node, node: &Node, left: f64, bottom: f64, svg: &mut String) {
    let scale = WIDTH / root.samples as f64;
    let mut x = left;
    for (name, callee) in &node.callees {
        let width = callee.samples as f64 * scale;
        if width >= NARROWEST {
            let (y, share) = (bottom - ROW, callee.samples as f64 / root.samples as f64 * 100.0);
            *svg += &format!(
                "<g><title>{}, {share:.1} %</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
                 fill=\"{}\"/>",
                escape(name),
                (width - 0.4).max(0.4),
                ROW - 1.0,
                callee.kind.colour()
            );
            let letters = ((width - 4.0) / LETTER) as usize;
            if letters >= 4 {
                let shown = escape(&short(name, letters));
                *svg += &format!("<text x=\"{:.1}\" y=\"{:.1}\">{shown}</text>", x + 2.0, y + 11.5);
            }
            *svg += "</g>\n";
            draw(root, callee, x, y, svg);
        }
        x += width;
    }
}

/// The end of a path says most.
fn short(name: &str, letters: usize) -> String {
    let count = name.chars().count();
    if count <= letters {
        return name.to_owned();
    }
    let tail = name.rsplit("::").find(|part| !part.is_empty()).unwrap_or(name);
    tail.chars().take(letters).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "\
tokio-rt-worker 12 1.5:    1001001 cpu-clock: 
\t          6dd2bb a::inner::h0123456789abcdef+0x6eb (/bin/program)
\t           891f5 start_thread+0x305 (/usr/lib/libc.so.6)

roomlog-read-1 13 1.6:    1001001 cpu-clock: 
\tffffffff81 do_syscall_64+0x1 ([kernel.kallsyms])
\t          6dd2bb <a::Inner as b::B>::call+0x6eb (/bin/program)
\t           891f5 start_thread+0x305 (/usr/lib/libc.so.6)

roomlog-read-0 14 1.7:    1001001 cpu-clock: 
\t          6dd2bb <a::Inner as b::B>::call+0x6eb (/bin/program)
\t           891f5 start_thread+0x305 (/usr/lib/libc.so.6)
";

    #[test]
    fn samples_become_a_tree_with_the_outermost_call_at_the_root() {
        let root = collect(SCRIPT);
        assert_eq!(
            (root.samples, root.callees.keys().map(String::as_str).collect::<Vec<_>>()),
            (3, vec!["roomlog-read", "tokio-rt-worker"])
        );
        let readers = &root.callees["roomlog-read"].callees["start_thread"];
        assert_eq!((readers.samples, readers.kind), (2, Kind::Library));
        let call = &readers.callees["<a::Inner as b::B>::call"];
        assert_eq!((call.samples, call.kind, call.callees["do_syscall_64"].kind), (2, Kind::Program, Kind::Kernel));
        let worker = &root.callees["tokio-rt-worker"].callees["start_thread"];
        assert_eq!(worker.callees.keys().next().map(String::as_str), Some("a::inner"), "without its hash");
    }

    #[test]
    fn the_graph_is_as_high_as_the_deepest_call_and_its_names_are_escaped() {
        let svg = graph("a < b", SCRIPT).expect("samples");
        assert_eq!(svg.matches("<title>").count(), 7, "{svg}");
        assert!(svg.contains("a &lt; b: 3 samples") && svg.contains("&lt;a::Inner as b::B&gt;::call, 66.7 %"), "{svg}");
        assert!(graph("empty", "# nothing\n").is_err());
    }
}
