package main

import (
	"strings"
	"testing"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, namespace: n, labels: {app: x}}
spec: {replicas: 1, args: [--one, --two]}
`

func TestDifferencesAreFoundAndHelmsOwnLabelsAreNot(t *testing.T) {
	for name, c := range map[string]struct {
		other string
		want  int
	}{
		"the same":          {deployment, 0},
		"a label of Helm's": {replace("labels: {app: x}", "labels: {app: x, helm.sh/chart: c-1}"), 0},
		"another label":     {replace("labels: {app: x}", "labels: {app: x, more: y}"), 1},
		"a value":           {replace("replicas: 1", "replicas: 2"), 1},
		"a value's form":    {replace("replicas: 1", "replicas: 1.0"), 0},
		"an item":           {replace("--two", "--three"), 1},
		"an item more":      {replace("--two", "--two, --three"), 1},
		"a name":            {replace("name: a,", "name: b,"), 2},
		"an object more":    {deployment + "---" + replace("name: a,", "name: b,"), 1},
		"a Namespace":       {deployment + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: n}}\n", 0},
	} {
		a, err := load([]byte(deployment))
		if err != nil {
			t.Fatal(err)
		}
		b, err := load([]byte(c.other))
		if err != nil {
			t.Fatal(name, err)
		}
		if got := compare(a, b); len(got) != c.want {
			t.Errorf("%s: %d differences, want %d: %v", name, len(got), c.want, got)
		}
	}
}

func TestAnEmptyStreamIsAnErrorAndNotASetWithoutDifferences(t *testing.T) {
	if _, err := load([]byte("---\n")); err == nil {
		t.Error("no error")
	}
}

func replace(old, new string) string { return strings.Replace(deployment, old, new, 1) }
