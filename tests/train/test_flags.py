from jaxpretrain.train.flags import make_parser


def test_the_help_tells_flags_exit_codes_and_configs():
    text = make_parser("Trains.").format_help()
    for part in ("--start_timeout SECONDS", "--coordinator_port PORT", "  75  asked to", "olmo7b"):
        assert part in text
    flags = make_parser("").parse_args(["--config=olmo_nano", "--workdir=a"])
    assert (flags.start_timeout, flags.coordinator_port) == (300.0, None)
