//! x
fn main() {
    use breakout::datapath::*;
    let mut d = DataPath::open(std::path::Path::new("/tmp/x")).unwrap();
    let image = breakout::ruleset::compile(&Default::default());
    d.install(&Plan { lans: &[LanPlan { name: "spk0".into(), index: std::fs::read_to_string("/sys/class/net/spk0/ifindex").unwrap().trim().parse().unwrap(), mac: [0; 6], xdp: Some(Default::default()), namespace: 1 }], image: &image, egresses: &Default::default(), trace: false }).unwrap();
}
