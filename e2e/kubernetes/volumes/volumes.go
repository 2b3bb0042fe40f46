// Package volumes provisions persistent volumes of one machine: each is a sparse
// file with an XFS file system of the size asked for, mounted through a loop
// device, so that capacity, "no space left" and online expansion are real.
package volumes

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	"sigs.k8s.io/sig-storage-lib-external-provisioner/v13/controller"
)

const name = "keystore.dev/loop-volumes"

type provisioner struct {
	root   string
	client kubernetes.Interface
}

// Main runs the provisioner and the expander until a signal.
func Main() {
	root := flag.String("root", "", "directory that holds the volumes")
	kubeconfig := flag.String("kubeconfig", "", "kubeconfig")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		klog.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	p := &provisioner{root: *root, client: kubernetes.NewForConfigOrDie(config)}
	go p.expandForever(ctx)
	controller.NewProvisionController(ctx, p.client, name, p, controller.LeaderElection(false)).Run(ctx)
}

func (p *provisioner) image(volume string) string { return filepath.Join(p.root, volume+".img") }
func (p *provisioner) mount(volume string) string { return filepath.Join(p.root, volume) }

// Provision makes the volume of a claim on the node that the scheduler chose for its pod.
func (p *provisioner) Provision(ctx context.Context, options controller.ProvisionOptions) (*corev1.PersistentVolume, controller.ProvisioningState, error) {
	size := options.PVC.Spec.Resources.Requests[corev1.ResourceStorage]
	mount := p.mount(options.PVName)
	if err := p.makeFileSystem(options.PVName, size); err != nil {
		return nil, controller.ProvisioningFinished, err
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: options.PVName},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: *options.StorageClass.ReclaimPolicy,
			AccessModes:                   options.PVC.Spec.AccessModes,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: size},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: mount}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{
					Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{options.SelectedNodeName}}}}}}},
		},
	}, controller.ProvisioningFinished, nil
}

// makeFileSystem makes and mounts a volume that is not mounted yet; after a failure it is simply called again.
func (p *provisioner) makeFileSystem(volume string, size resource.Quantity) error {
	image, mount := p.image(volume), p.mount(volume)
	if run("mountpoint", "--quiet", mount) == nil {
		return nil
	}
	if err := os.MkdirAll(mount, 0o777); err != nil {
		return err
	}
	if err := run("truncate", "-s", fmt.Sprint(imageBytes(size)), image); err != nil {
		return err
	}
	if err := run("mkfs.xfs", "-q", "-f", image); err != nil {
		return err
	}
	if err := run("mount", "-o", "loop,discard", image, mount); err != nil {
		return err
	}
	return os.Chmod(mount, 0o777) // pods run as any user
}

// Delete removes the file system; what is already gone is not an error.
func (p *provisioner) Delete(ctx context.Context, volume *corev1.PersistentVolume) error {
	if err := run("umount", "--lazy", p.mount(volume.Name)); err != nil {
		klog.Error(err)
	}
	if err := os.Remove(p.image(volume.Name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	if err := os.Remove(p.mount(volume.Name)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// expandForever grows volumes whose claim asks for more, as an external resizer does.
func (p *provisioner) expandForever(ctx context.Context) {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := p.expandAll(ctx); err != nil {
			klog.Error(err)
		}
	}
}

func (p *provisioner) expandAll(ctx context.Context) error {
	claims, err := p.client.CoreV1().PersistentVolumeClaims("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for i := range claims.Items {
		if err := p.expand(ctx, &claims.Items[i]); err != nil {
			klog.Error(err)
		}
	}
	return nil
}

func (p *provisioner) expand(ctx context.Context, claim *corev1.PersistentVolumeClaim) error {
	wanted, have := claim.Spec.Resources.Requests[corev1.ResourceStorage], claim.Status.Capacity[corev1.ResourceStorage]
	if claim.Status.Phase != corev1.ClaimBound || wanted.Cmp(have) <= 0 {
		return nil
	}
	volume, err := p.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if err != nil || volume.Annotations["pv.kubernetes.io/provisioned-by"] != name {
		return err
	}
	if err := p.grow(volume.Name, wanted); err != nil {
		return err
	}
	volume.Spec.Capacity[corev1.ResourceStorage] = wanted
	if _, err := p.client.CoreV1().PersistentVolumes().Update(ctx, volume, metav1.UpdateOptions{}); err != nil {
		return err
	}
	claim.Status.Capacity[corev1.ResourceStorage] = wanted
	claim.Status.Conditions = nil
	_, err = p.client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, claim, metav1.UpdateOptions{})
	return err
}

func (p *provisioner) grow(volume string, size resource.Quantity) error {
	if err := run("truncate", "-s", fmt.Sprint(imageBytes(size)), p.image(volume)); err != nil {
		return err
	}
	out, err := exec.Command("losetup", "--noheadings", "--output", "NAME", "--associated", p.image(volume)).Output()
	if err != nil {
		return fmt.Errorf("losetup: %w", err)
	}
	device := strings.TrimSpace(string(out))
	if err := run("losetup", "--set-capacity", device); err != nil {
		return err
	}
	return run("xfs_growfs", p.mount(volume))
}

// imageBytes is the size asked for, or the least that mkfs.xfs accepts.
func imageBytes(size resource.Quantity) int64 { return max(size.Value(), 300<<20) }

func run(program string, args ...string) error {
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return nil
}
