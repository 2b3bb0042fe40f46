// Reads metrics in the Prometheus text format from standard input, parses them strictly and lints them: what
// `promtool check metrics` does, from the same libraries and without Prometheus itself.
// Exit status: 0 clean · 1 does not parse · 3 parses, but has problems.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

func main() {
	os.Exit(check(os.Stdin, os.Stdout, os.Stderr))
}

func check(in io.Reader, out, problems io.Writer) int {
	text, err := io.ReadAll(in)
	if err != nil {
		fmt.Fprintln(problems, "reading:", err)
		return 1
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		fmt.Fprintln(problems, "does not parse:", err)
		return 1
	}
	if len(families) == 0 {
		fmt.Fprintln(problems, "does not parse: not one metric")
		return 1
	}
	found, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		fmt.Fprintln(problems, "does not parse:", err)
		return 1
	}
	for _, problem := range found {
		fmt.Fprintln(problems, problem.Metric+":", problem.Text)
	}
	if len(found) > 0 {
		return 3
	}
	fmt.Fprintf(out, "%d metric families, no problems\n", len(families))
	return 0
}
