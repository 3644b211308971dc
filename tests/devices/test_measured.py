"""Tables of pulses as programs and laboratories write them are read as what they are, or refused in a true line."""

import pytest

from energytl.devices.measured import read_csv

HEADER = "device,pulse,direction,conductance"
WORD = {1: "up", -1: "down"}
PULSES = [(f"D{d}", n, 1 if n % 10 < 6 else -1, 12.5 + n / 16 + d) for d in range(2) for n in range(20)]
PLAIN = [f"{d},{n},{WORD[s]},{g:.4f}" for d, n, s, g in PULSES]


def german(rows):
    return [f"{d};{n};{WORD[s]};{g:.4f}".replace(".", ",") for d, n, s, g in rows]


FORMS = {
    "plain": [HEADER, *PLAIN],
    "byte order mark, CR LF": ("\r\n".join([HEADER, *PLAIN]) + "\r\n").encode("utf-8-sig"),
    "UTF-16": "\n".join([HEADER, *PLAIN]).encode("utf-16"),
    "UTF-16 big-endian": b"\xfe\xff" + "\n".join([HEADER, *PLAIN]).encode("utf-16-be"),
    "quoted": ['"' + line.replace(",", '","') + '"' for line in [HEADER, *PLAIN]],
    "more columns": [HEADER + ",volt", *[line + ",1.5" for line in PLAIN]],
    "other order of columns": ["volt,conductance,pulse,device,direction"]
    + [f"1,{g},{n},{d},{WORD[s]}" for d, n, s, g in PULSES],
    "semicolons, decimal commas": [HEADER.replace(",", ";"), *german(PULSES)],
    "semicolons, three decimals": [HEADER.replace(",", ";")]
    + [
        f"{d};{n};{WORD[s]};{g:.3f}".replace(".", ",")
        if g == round(g, 3)
        else f"{d};{n};{WORD[s]};{g}".replace(".", ",")
        for d, n, s, g in PULSES
    ],
    "quoted decimal commas": [HEADER, *[f'{d},{n},{WORD[s]},"{g:.4f}"'.replace(".", ",") for d, n, s, g in PULSES]],
    "Excel's own separator line": ["sep=;", HEADER.replace(",", ";"), *german(PULSES)],
    "tabs": [line.replace(",", "\t") for line in [HEADER, *PLAIN]],
    "bars": [line.replace(",", "|") for line in [HEADER, *PLAIN]],
    "spaces": [line.replace(",", "   ") for line in [HEADER, *PLAIN]],
    "empty rows": [HEADER, *PLAIN[:20], "", ",,,", *PLAIN[20:], ",,,", ""],
    "spaces around": [HEADER.replace(",", " ,") + " ", *[line.replace(",", " , ") for line in PLAIN]],
    "capitals": [HEADER.upper(), *[line.upper() for line in PLAIN]],
    "whole numbers as floats": [HEADER, *[f"{d},{n:.1f},{s:.1f},{g}" for d, n, s, g in PULSES]],
    "signs": [HEADER, *[f"{d},{n},{s:+d},{g:e}" for d, n, s, g in PULSES]],
    "minus signs": [HEADER, *[f"{d},{n},{s},{g}".replace("-", "−") for d, n, s, g in PULSES]],
    "other words": [HEADER, *[f"{d},{n},{'SET' if s > 0 else 'RESET'},{g}" for d, n, s, g in PULSES]],
    "text above": ["# Keysight B1500", "operator: A, B", "", "# " + HEADER, *PLAIN],
    "numbered from 7": [HEADER, *[f"{d},{n + 7},{WORD[s]},{g}" for d, n, s, g in PULSES]],
    "rows in another order": [HEADER, *sorted(PLAIN, key=lambda line: line[::-1])],
    "numbered anew in every run": [HEADER, *[f"{d},{n % 10 % 6},{WORD[s]},{g}" for d, n, s, g in PULSES]],
    "numbered for each direction": [HEADER]
    + [f"{d},{n % 10 + 6 * (n // 10) if s > 0 else n % 10 - 6 + 4 * (n // 10)},{WORD[s]},{g}" for d, n, s, g in PULSES],
    "numbered in every cycle": [HEADER, *[f"{d},{n % 10},{WORD[s]},{g}" for d, n, s, g in PULSES]],
}


def read(tmp_path, content):
    path = tmp_path / "m.csv"
    path.write_bytes(content if isinstance(content, bytes) else ("\n".join(content) + "\n").encode())
    return read_csv(path)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_measurement(tmp_path, form):
    measured = read(tmp_path, FORMS[form])
    columns = {name: column for column, name in enumerate(measured.names)}
    assert set(columns) == {"D0", "D1"}
    for device in (0, 1):
        rows = [(s, g) for d, _, s, g in PULSES if d == f"D{device}"]
        assert measured.directions[:, columns[f"D{device}"]].tolist() == [float(s) for s, _ in rows]
        assert measured.shown[:, columns[f"D{device}"]].tolist() == pytest.approx([g for _, g in rows], abs=5.1e-5)
    assert not measured.siemens


@pytest.mark.parametrize(
    ("name", "siemens"),
    [
        *(("conductance (uS)", 1e-6), ("Conductance [µS]", 1e-6), ("conductance_us", 1e-6), ("conductance / mS", 1e-3)),
        *(("conductance (S)", 1.0), ("conductance in nS", 1e-9), ("conductance (\u03bcS)", 1e-6)),
    ],
)
def test_a_unit_after_the_name_makes_siemens(tmp_path, name, siemens):
    measured = read(tmp_path, [HEADER.replace("conductance", name), *PLAIN])
    assert measured.siemens
    assert float(measured.shown[0, 0]) == pytest.approx(12.5 * siemens)


def test_a_unit_in_latin_1_and_thousands(tmp_path):
    rows = [f'{d},{n},{WORD[s]},"{1000 * g:,.2f}"' for d, n, s, g in PULSES]
    measured = read(tmp_path, "\n".join([HEADER + " (µS)", *rows]).encode("latin-1"))
    assert float(measured.shown[0, 0]) == pytest.approx(12.5e-3)


def test_devices_of_different_length_are_filled_with_nan(tmp_path):
    measured = read(tmp_path, [HEADER, *PLAIN[:35]])
    assert measured.pulses == 35
    assert measured.shown[15:, 1].isnan().all()
    assert measured.directions[15:, 1].tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"line 1: no column 'device'; a line must name the columns device, pulse, direction, conductance"),
        (["device;pulse;direction", "a;1;up"], r"line 1: no column 'conductance'"),
        ([HEADER], r"holds no pulses below its first line"),
        ([HEADER, "a,1,sideways,1.0", *PLAIN], r"line 2: direction is 'sideways'; allowed: up, down \(or \+1, -1;"),
        ([HEADER, "a,1.5,up,1.0"], r"line 2: pulse is '1\.5'; allowed: a whole number"),
        ([HEADER, "a,1,up,nan"], r"line 2: conductance is 'nan'; allowed: a finite number"),
        ([HEADER, "a,1,up,high"], r"line 2: conductance is 'high'"),
        ([HEADER, "a,1,up"], r"line 2: conductance is ''"),
        ([HEADER, "a,1,up,1_0"], r"line 2: conductance is '1_0'"),
        ([HEADER, "a,1,up,10,25"], r"line 2: 5 values in 4 columns; quote values that hold the separator ','"),
        (
            [HEADER, 'a,1,up,"10,250"'],
            r"line 2: conductance '10,250' may have a decimal comma or a thousands separator",
        ),
        ([HEADER + " (uA)", *PLAIN], r"column 'conductance \(uA\)' has the unit 'ua'; allowed: S, mS, µS, uS, nS"),
        (
            [HEADER, *PLAIN[:12], PLAIN[3]],
            r"line 14: device D0 has pulse 3 twice; number its pulses in measuring order",
        ),
        ([HEADER, *PLAIN[:9]], r"device D0 has 9 pulses; a fit needs 10 or more of each"),
        ([HEADER, *PLAIN[:5], *PLAIN[6:20]], r"device D0 has no pulse 5, but later ones"),
        (
            [HEADER, *[line.replace("down", "up") for line in PLAIN]],
            r"holds no pulse down: a fit needs both directions",
        ),
        ([HEADER] + [f"a,{n // 2},{'up' if n % 2 else 'down'},{n}" for n in range(20)], r"device a has pulse 0 twice"),
        (b"\xff\xfe\x00\x01" * 10, r"line 1: no column 'device'"),
        (b"\x00\x01" * 10, r"is no text: save the table as CSV"),
        (b"PK\x03\x04\x14\x00\x06\x00 a workbook", r"is no text: save the table as CSV"),
    ],
)
def test_what_is_no_measurement_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, content)
