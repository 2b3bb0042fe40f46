package main

import (
	"io"
	"strings"
	"testing"
)

func TestExitStatusSaysWhatIsWrongWithTheMetrics(t *testing.T) {
	for text, want := range map[string]int{
		"": 1,
		"# HELP a_total A.\n# TYPE a_total counter\na_total 1\n":   0,
		"# HELP a_total A.\n# TYPE a_total counter\na_total{x 1\n": 1,
		"# HELP a A.\n# TYPE a counter\na 1\n":                     3, // a counter without _total
		"# TYPE a_bytes gauge\na_bytes 1\n":                        3, // no help
	} {
		if got := check(strings.NewReader(text), io.Discard, io.Discard); got != want {
			t.Errorf("%q: exit status %d, want %d", text, got, want)
		}
	}
}
