// Package metrics serves what the kubelets measure as the API metrics.k8s.io: it is metrics-server, all but its command
// line, which does not compile with the libraries of this release of Kubernetes.
package metrics

import (
	"flag"
	"net"
	"time"

	corev1 "k8s.io/api/core/v1"
	definitions "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/options"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/metrics-server/pkg/api"
	"sigs.k8s.io/metrics-server/pkg/api/generated/openapi"
	"sigs.k8s.io/metrics-server/pkg/scraper/client"
	metrics "sigs.k8s.io/metrics-server/pkg/server"
)

const kubeletPort = 10250

// Main runs the server until a signal.
func Main() {
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig, for the API server and for the kubelets")
	address := flag.String("bind-address", "", "where to serve")
	port := flag.Int("secure-port", 0, "where to serve")
	certificate := flag.String("tls-cert-file", "", "what to serve with")
	key := flag.String("tls-private-key-file", "", "what to serve with")
	every := flag.Duration("metric-resolution", 10*time.Second, "how often every kubelet is asked")
	flag.Parse()

	serving := options.NewSecureServingOptions().WithLoopback()
	serving.BindAddress, serving.BindPort = net.ParseIP(*address), *port
	serving.ServerCert.CertKey = options.CertKey{CertFile: *certificate, KeyFile: *key}
	serverConfig, err := serverConfig(serving, *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	restConfig, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	complete, err := metrics.Config{
		Apiserver: serverConfig,
		Rest:      restConfig,
		Kubelet: &client.KubeletClientConfig{
			Client:              *rest.CopyConfig(restConfig),
			Scheme:              "https",
			DefaultPort:         kubeletPort,
			AddressTypePriority: []corev1.NodeAddressType{corev1.NodeInternalIP},
		},
		MetricResolution: *every,
		ScrapeTimeout:    *every / 2,
	}.Complete()
	if err != nil {
		klog.Fatal(err)
	}
	if err := complete.RunUntil(server.SetupSignalHandler()); err != nil {
		klog.Fatal(err)
	}
}

// serverConfig leaves it to the API server who may ask for what.
func serverConfig(serving *options.SecureServingOptionsWithLoopback, kubeconfig string) (*server.Config, error) {
	config := server.NewConfig(api.Codecs)
	config.EffectiveVersion = compatibility.DefaultBuildEffectiveVersion()
	namer := definitions.NewDefinitionNamer(api.Scheme)
	config.OpenAPIConfig = server.DefaultOpenAPIConfig(openapi.GetOpenAPIDefinitions, namer)
	config.OpenAPIV3Config = server.DefaultOpenAPIV3Config(openapi.GetOpenAPIDefinitions, namer)
	if err := serving.ApplyTo(&config.SecureServing, &config.LoopbackClientConfig); err != nil {
		return nil, err
	}
	authentication := options.NewDelegatingAuthenticationOptions()
	authentication.RemoteKubeConfigFile = kubeconfig
	if err := authentication.ApplyTo(&config.Authentication, config.SecureServing, nil); err != nil {
		return nil, err
	}
	authorization := options.NewDelegatingAuthorizationOptions()
	authorization.RemoteKubeConfigFile = kubeconfig
	return config, authorization.ApplyTo(&config.Authorization)
}
