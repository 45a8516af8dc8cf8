//! The operations by time: `cargo bench -p roomlog-bench`. Times drift with the machine; see `--bin instructions`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use roomlog_bench::OPERATIONS;

fn micro(criterion: &mut Criterion) {
    for operation in OPERATIONS {
        let (group, name) = operation.name.split_once('/').expect("a group and a name");
        let mut group = criterion.benchmark_group(group);
        group.throughput(Throughput::Elements(operation.elements));
        // Prepared when it is its turn, and only if it is asked for.
        let mut repeat = None;
        group.bench_function(name, |bencher| bencher.iter(repeat.get_or_insert_with(operation.prepare)));
        group.finish();
    }
}

criterion_group!(benches, micro);
criterion_main!(benches);
